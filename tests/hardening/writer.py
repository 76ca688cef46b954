"""Write and read the files of one cache, as a sampling process does; run as `writer.py FOLDER NAME COUNT`, several at
once. What it prints is the list of what went wrong."""
import json
import random
import sys
import warnings
from pathlib import Path

import torch
from gradcheck.core import read_meta, save_atomically
from safetensors.torch import load_file

FILES = 40                                                 # few names, so that the writers meet


def main(folder, name, count):
    "`count` writes, each followed by a read of a file that anybody wrote."
    dice, wrong = random.Random(name), []
    for k in range(count):
        path = Path(folder) / f"key{dice.randrange(3)}" / f"{dice.randrange(FILES):06d}.safetensors"
        try:
            save_atomically({"samples": torch.full((50,), k)}, path, {"value": k, "by": name})
            other = dice.choice(list(path.parent.glob("*.safetensors")))
            tensors, header = load_file(other), read_meta(other)
            if tensors["samples"].shape != (50,) or len(tensors["samples"].unique()) != 1 or "value" not in header:
                wrong.append(f"{other.name} is torn")
        except Exception as e: wrong.append(f"{type(e).__name__}: {e}")
    print(json.dumps(wrong))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
