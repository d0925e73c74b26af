"""Prints a part of an image: hexdump.py ENDPOINT [OFFSET [LENGTH]]"""

import sys

import blockferry


def main() -> None:
    endpoint, *numbers = sys.argv[1:]
    offset = int(numbers[0]) if numbers else 0
    length = int(numbers[1]) if len(numbers) > 1 else 512
    with blockferry.Client(endpoint, read_only=True) as disk:
        data = disk.read(min(length, disk.size - offset), offset)
    for start in range(0, len(data), 16):
        line = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        print(f"{offset + start:08x}  {line.hex(' '):<47}  {text}")


if __name__ == "__main__":
    main()
