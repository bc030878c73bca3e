"""The stories of docs/STORIES.md: the true causes are named, and the false leads of the day are not repeated."""

import sys
from pathlib import Path

import pytest
from firstdiff_binary import DIVERGES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "crates" / "dev" / "python"))

from stories import FALSE_LEADS, STORIES  # noqa: E402


@pytest.mark.parametrize("story", [pytest.param(s, marks=pytest.mark.real_model if s.name == "qwen" else (), id=s.name) for s in STORIES])
def test_a_story_ends_with_its_causes(story, firstdiff, tmp_path, request):
    models = request.getfixturevalue("models") if story.name == "qwen" else None
    model = story.build(tmp_path / "trace", models)
    text = firstdiff("check", tmp_path / "trace", "--model", model)
    assert text.code == DIVERGES, str(text)
    found = firstdiff.check(tmp_path / "trace", model).findings
    named = [(f["tap"].rsplit(".", 1)[-1], {f["cause"]["id"], *(e["id"] for e in f["cause"]["equal"])} if f["cause"] else set()) for f in found]
    assert len(named) == len(story.causes), str(text)
    for (tap, names), (expected_tap, expected) in zip(named, story.causes):
        assert tap == expected_tap and expected in names, str(text)
    for lead in FALSE_LEADS:
        assert lead not in text.stdout.lower(), str(text)
    # The page shows what is printed; figures may move with the version of torch.
    page = (ROOT / "docs" / "STORIES.md").read_text()
    part = page.split(f"## {story.title}\n", 1)[1].split("\n## ", 1)[0]
    for line in text.stdout.splitlines():
        if line.startswith(("diverges", "not loaded", "  cause", "  segment")):
            assert line in part, f"docs/STORIES.md lacks this line; run `cargo dev stories`: {line}"
