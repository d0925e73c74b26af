"""Tells how much of images is data, zeroes and holes: holes.py ENDPOINT..."""

import sys

import blockferry


def main() -> None:
    for endpoint in sys.argv[1:]:
        extents = blockferry.map(endpoint)
        size = sum(extent.length for extent in extents)
        data = sum(extent.length for extent in extents if not extent.zero)
        holes = sum(extent.length for extent in extents if extent.hole)
        print(f"{endpoint}: {size} bytes, {data} of data, {holes} in holes")


if __name__ == "__main__":
    main()
