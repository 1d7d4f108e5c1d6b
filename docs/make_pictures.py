"""Draw the pictures of the pages from the output of a demo and of the leaves of own-data.md: all of generated images.

    python docs/make_pictures.py --demo output/demo --leaves output/leaves

The sheets are those that train_net.py and inspect_components.py draw; here they are put side by side and made small.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
# A panel of the sheets of inspect_components.py with its title: origin, size, and the way to the next.
PANEL, STEP, MARGIN = (424, 454), (432, 460), 14
SCENE = "0030"


def draw_components(demo: Path) -> None:
    """Draw image, truth, prediction, embedding and the windows of four sizes, and the embedding as points."""
    (weights,) = demo.glob("cells/*-hicl-*/model_final.pth")
    config = ROOT / "configs/parts/deeplab_v3_plus_R_18_hicl.yaml"
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "projects/HiCL/inspect_components.py"
        words = ["--config-file", config, "--weights", weights, "--image", SCENE, "--output", folder]
        subprocess.run([sys.executable, str(script), *map(str, words)], check=True)
        sheet = Image.open(Path(folder) / f"{SCENE}.png").convert("RGB")
    panels = [
        _panel(sheet, *place) for place in ((0, 0), (1, 0), (2, 0), (1, 2), (0, 1), (1, 1), (2, 1), (0, 2))
    ]
    _save(_grid(panels, 4), "components", 1040)
    _save(sheet.crop((0, 1390, sheet.width, sheet.height)), "embedding", 900)


def draw_predictions(run: Path, name: str, count: int) -> None:
    """Draw test images of ``run`` beside truth and prediction, one below the other."""
    sheets = [Image.open(path).convert("RGB") for path in sorted((run / "pictures").glob("*.png"))[:count]]
    column = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:  # of the heights that their legends need
        column.paste(sheet, (0, top))
        top += sheet.height
    _save(column, name, 620)


def _panel(sheet: Image.Image, column: int, row: int) -> Image.Image:
    left, top = MARGIN + column * STEP[0], MARGIN + row * STEP[1]
    return sheet.crop((left, top, left + PANEL[0], top + PANEL[1]))


def _grid(tiles: list[Image.Image], columns: int) -> Image.Image:
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for number, tile in enumerate(tiles):
        grid.paste(tile, (number % columns * width, number // columns * height))
    return grid


def _save(picture: Image.Image, name: str, width: int) -> None:
    small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(PICTURES / f"{name}.png", optimize=True)


def main() -> None:
    """Draw the pictures of whatever output is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, metavar="DIR", help="output of make demo")
    parser.add_argument(
        "--leaves", type=Path, metavar="DIR", help="output of the training of docs/own-data.md"
    )
    args = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    if args.demo:
        draw_components(args.demo)
        (run,) = args.demo.glob("cells/*-hicl-*")
        draw_predictions(run, "predictions", 3)
    if args.leaves:
        draw_predictions(args.leaves, "leaves", 2)


if __name__ == "__main__":
    main()
