"""``python -m pipeline`` lists the commands; ``python -m pipeline extract`` runs one."""

import difflib
import runpy
import sys

from pipeline import __version__

COMMANDS = {
    "extract": "run a frozen base once over image folders, cache its features",
    "cache": "list, show, verify, repair and prune caches",
    "classify": "train and compare classifiers on cached features",
    "finetune": "train a head and the last layers of a base on cached maps",
    "predict": "classify images with a trained head or an ImageNet network",
    "export": "export preprocessing, base and head as one Keras or ONNX model",
}


def main() -> None:
    """Run the command that is named, or print all in order of use."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        name = sys.argv.pop(1).removeprefix("pipeline.")
        if name not in COMMANDS:
            similar = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            print(f"unknown command {name}: one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
            sys.exit(2)
        runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
        return
    print(f"feature-caching pipeline {__version__}: images -> cached features -> classifiers\n")
    for name, summary in COMMANDS.items():
        print(f"  python -m pipeline.{name:10} {summary}")
    print("\nEvery command has --help with an example.")


if __name__ == "__main__":
    main()
