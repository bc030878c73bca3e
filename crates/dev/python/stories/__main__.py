"""Writes docs/STORIES.md: what firstdiff prints for each story. Run by `cargo dev stories`."""

import argparse
import subprocess
import tempfile
from pathlib import Path

import torch

from stories import ROOT, STORIES

HEAD = """# Stories

Engines that were brought up the hard way, rebuilt, and what `firstdiff check` prints for them. Written by `cargo dev stories`;
`tests/test_stories.py` holds firstdiff to the causes, and to not repeating the false leads.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firstdiff", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder with qwen.gguf")
    args = parser.parse_args()
    torch.set_num_threads(1)
    page = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        for story in STORIES:
            under = Path(folder) / story.name
            under.mkdir()
            model = story.build(under / "trace", args.models)
            command = [args.firstdiff, "check", under / "trace", "--model", model]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            shown = done.stdout.replace(folder, "…").rstrip()
            page.append(f"\n## {story.title}\n\n{story.told}\n\n*By hand:* {story.done}\n\n")
            page.append(f"```console\n$ firstdiff check trace --model {model.name}\n{shown}\n```\n")
    (ROOT / "docs" / "STORIES.md").write_text("".join(page))


if __name__ == "__main__":
    main()
