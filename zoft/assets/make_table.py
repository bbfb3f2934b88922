"""Make the table of normal quantiles that the ``gaussian-table`` noise reads.

    python -m zoft.assets.make_table zoft/assets/gaussian-table-1.npy

Entry i is the standard normal quantile at (i + 1/2) / 65,536, scaled so that the table's variance is 1.
It is shipped as a file, because the last bits of a quantile function differ between platforms.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np

SIZE = 65536


def quantile_table() -> np.ndarray:
    """The table: 65,536 float32 values, ascending, antisymmetric, of mean 0 and variance 1."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((SIZE // 2 + i + 0.5) / SIZE) for i in range(SIZE // 2)])
    upper /= np.sqrt(np.mean(upper**2))
    return np.concatenate([-upper[::-1], upper]).astype("<f4")


def main() -> None:
    """Write the table and print its hash."""
    path = Path(sys.argv[1])
    np.save(path, quantile_table(), allow_pickle=False)
    print(f"{path}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
