"""``python -m pipeline`` lists the commands; ``python -m pipeline extract`` runs one."""

import difflib
import runpy
import sys

from pipeline import __version__

COMMANDS = {
    "extract": "run a frozen base once over images, cache its features",
    "cache": "list, show, verify, repair and prune caches",
    "classify": "train and compare classifiers on cached features",
    "finetune": "train a head and the last layers of a base on cached maps",
    "predict": "classify images with a trained head or an ImageNet network",
    "app": "open a page on this machine: try pictures, mend labels, train again",
    "export": "export preprocessing, base and head as one Keras, ONNX or LiteRT model",
}


def main() -> None:
    """Run the command that is named, or print all in order of use."""
    name = sys.argv.pop(1).removeprefix("pipeline.") if len(sys.argv) > 1 else "help"
    if name == "--version":
        print(__version__)
        return
    if name in COMMANDS:
        runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
        return
    if name not in ("help", "-h", "--help"):
        similar = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        kind = "option" if name.startswith("-") else "command"
        print(
            f"error: unknown {kind} {name}; expected one of {', '.join(COMMANDS)}{hint}",
            file=sys.stderr,
        )
        sys.exit(2)
    print(f"feature-caching pipeline {__version__}: images -> cached features -> classifiers\n")
    for name, summary in COMMANDS.items():
        print(f"  python -m pipeline.{name:10} {summary}")
    print("\nEvery command has --help with an example.")


if __name__ == "__main__":
    main()
