"""``python -m pipeline`` lists the commands."""

from pipeline import __version__

COMMANDS = {
    "extract": "run a frozen base once over image folders and cache its features",
    "cache": "list, show, verify, repair and prune caches",
    "classify": "train and compare classifiers on cached features",
    "finetune": "train the last layers of a base, too, from cached maps",
    "predict": "classify images with a trained head, or with a ready-made network",
    "export": "write one model from image to class probabilities, Keras or ONNX",
}


def main() -> None:
    """Print the commands in the order of their use."""
    print(f"feature-caching pipeline {__version__}: images -> cached features -> classifiers\n")
    for name, summary in COMMANDS.items():
        print(f"  python -m pipeline.{name:10} {summary}")
    print("\nEach answers --help with an example.")


if __name__ == "__main__":
    main()
