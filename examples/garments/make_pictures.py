"""Write pictures of Fashion-MNIST as an ImageFolder: pictures/train/CLASS/0000.png and pictures/test/CLASS."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from PIL import Image

from kdscale import plugins
from kdscale.config.schema import DataConfig


def main() -> None:
    """Take the first pictures of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=60, help="pictures a class (default: %(default)s)")
    parser.add_argument("--test", type=int, default=20, help="pictures a class (default: %(default)s)")
    wanted = vars(parser.parse_args())
    garments = plugins.load("datasets", "fashion_mnist")(DataConfig(name="fashion_mnist"))
    for split, count in wanted.items():
        source, written = garments.open(split), Counter[str]()
        for row in range(len(source)):
            pixels, label = source[row]
            name = garments.info.class_names[label].lower().replace("/", "-").replace(" ", "-")
            if written[name] < count:
                file = Path("pictures", split, name, f"{written[name]:04}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.squeeze(-1)).save(file)
                written[name] += 1
        print(f"pictures/{split}: {sum(written.values())} pictures of {len(written)} classes")


if __name__ == "__main__":
    main()
