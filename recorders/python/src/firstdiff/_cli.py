"""What `python -m firstdiff.<engine> MODEL --prompt TEXT -o TRACE` is for every engine: options, errors, last words.

A module of an engine may be run where its engine is not installed. So its imports stand inside `needs(EXTRA)`, and what
people then read is one line that says what to install.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, NoReturn, Optional

from ._recorder import BaseRecorder
from ._selection import say, show_size
from ._session import RecorderWarning

ERROR = 2


@contextmanager
def needs(extra: str, main: bool) -> Iterator[None]:
    """Says of an import that fails inside the block what to install; as the program `main`, and ends it."""
    try:
        yield
    except ImportError as error:
        missing = f"the package {error.name!r} is missing" if error.name else str(error)
        text = f"{missing}; install what this recorder needs with: pip install 'firstdiff[{extra}]'"
        if main:
            fail(text)
        raise ImportError(f"firstdiff: {text}", name=error.name) from error


def fail(text: str) -> NoReturn:
    """Ends the program with one line."""
    say(f"error: {' '.join(text.split())}")
    sys.exit(ERROR)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def parser(engine: str, about: str, model: str, dtypes: bool = False) -> argparse.ArgumentParser:
    """The options that all recorders have."""
    made = _Parser(prog=f"python -m firstdiff.{engine}", description=about)
    made.add_argument("model", metavar="MODEL", help=model)
    text = made.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="the prompt")
    text.add_argument("--tokens", metavar="1,2,3", type=_tokens, help="the prompt's token ids; no tokenizer is needed")
    made.add_argument("--new", metavar="N", type=_count, default=8, help="tokens to generate, greedily (default 8)")
    made.add_argument("-o", "--output", metavar="TRACE", required=True, help="folder for the trace")
    made.add_argument("--overwrite", action="store_true", help="replace an older trace")
    made.add_argument("--layers", metavar="0-3,7", help="only these layers")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--taps", metavar="PATTERNS", help="only these tensors, such as 'q_rope,layers.*.out,logits'")
    which.add_argument(
        "--outputs", dest="taps", action="store_const", const="out,logits", help="only the layers' outputs and the logits"
    )
    made.add_argument("--steps", metavar="0-3,7", help="only these forward calls; the first one is the prompt")
    made.add_argument("--max-bytes", metavar="SIZE", help="end the trace before it grows larger than this: 500MB, 2GB")
    if dtypes:
        made.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="run in this format, not the file's")
    return made


def selection(options: argparse.Namespace) -> dict[str, Any]:
    """The recorder's keyword arguments that the options stand for."""
    names = ("layers", "taps", "steps", "max_bytes", "overwrite")
    return {name: getattr(options, name) for name in names}


def _tokens(text: str) -> list[int]:
    try:
        tokens = [int(part) for part in text.split(",")]
    except ValueError:
        tokens = []
    if not tokens or min(tokens) < 0:
        raise argparse.ArgumentTypeError(f"token ids are numbers with commas between them, not {text!r}")
    return tokens


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


@dataclass
class Run:
    """What an engine's part of a command gives back."""

    recorder: BaseRecorder
    tokens: list[int]  # what was generated
    text: Optional[str] = None


def main(run: Callable[[argparse.Namespace], Run], options: argparse.ArgumentParser) -> None:
    """Runs `run` with the parsed options and says how it ended: every error in one line, exit code 2."""
    given = options.parse_args()
    cut: list[str] = []

    def show(message: Any, category: type, *args: Any, **kwargs: Any) -> None:
        if issubclass(category, RecorderWarning):
            cut.append(str(message))
            say(str(message).removeprefix("firstdiff").removeprefix(":").strip())

    with warnings.catch_warnings():
        # an engine's own warnings are not what the command is for
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RecorderWarning)
        warnings.showwarning = show
        try:
            done = run(given)
        except KeyboardInterrupt:
            fail("interrupted; the steps that are on disk are whole")
        except Exception as error:
            fail(_one_line(error))
    writer = done.recorder.session.writer
    if writer is None or not writer.steps:
        sys.exit(ERROR)  # why was said
    print("generated:", ",".join(map(str, done.tokens)) or "nothing")
    if done.text:
        print("text:", done.text)
    print(f"recorded: {writer.path}, {writer.steps} steps, {show_size(writer.bytes)}")
    print(f"next: firstdiff check {writer.path} --model {given.model}")
    if cut and not writer.metadata["complete"]:
        sys.exit(ERROR)


def _one_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and text:
        return text.removeprefix("firstdiff: ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def existing(model: str) -> str:
    """A path that people meant as one and that is not there is an error here, not a download."""
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    path = Path(model).expanduser()
    if looks_like_a_path and not path.exists():
        raise ValueError(f"{model} does not exist")
    return str(path) if path.exists() else model
