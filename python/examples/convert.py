"""Makes a compressed qcow2 image of anything, and shows how it gets on: convert.py SOURCE DESTINATION"""

import sys

import blockferry


def show(progress: blockferry.Progress) -> None:
    if progress.size:
        end = "\n" if progress.done == progress.size else "\r"
        print(f"{progress.phase}: {100 * progress.done // progress.size} %", end=end, flush=True)


def main() -> None:
    source, destination = sys.argv[1:]
    try:
        report = blockferry.copy(
            source, destination, output_format="qcow2", compress=True, progress=show
        )
    except blockferry.Error as error:
        sys.exit(f"{error}" + "".join(f"\n{note}" for note in error.__notes__))
    print(f"{report.data} bytes of data and {report.zero} of zeroes in {report.seconds:.1f} s")


if __name__ == "__main__":
    main()
