"""``python -m pipeline`` lists the commands."""

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
    """Print the commands in order of use."""
    print(f"feature-caching pipeline {__version__}: images -> cached features -> classifiers\n")
    for name, summary in COMMANDS.items():
        print(f"  python -m pipeline.{name:10} {summary}")
    print("\nEvery command has --help with an example.")


if __name__ == "__main__":
    main()
