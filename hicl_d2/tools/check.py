"""The audit of data sets from the command line: report, audit.json and a picture sheet for each."""

from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image

from hicl_d2.command.console import console, counter
from hicl_d2.command.errors import InputError, counted
from hicl_d2.command.files import check_writable, write_json
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.audit import Audit, audit_dataset, find_shared, judge_absent, judge_purity
from hicl_d2.data.audit_report import as_json, as_text
from hicl_d2.data.custom import register_custom
from hicl_d2.data.datasets.registry import check_registered, load_records
from hicl_d2.data.names import file_stem
from hicl_d2.data.preflight import check_inputs
from hicl_d2.reading import read_image, read_labels
from hicl_d2.run.logs import run_log
from hicl_d2.visualization.colours import palette
from hicl_d2.visualization.contact import contact_sheet
from hicl_d2.visualization.files import check_own, save_picture
from hicl_d2.visualization.pictures import evenly_spaced


@run_log()
def main(args: Namespace) -> bool:
    """Audit the data sets of ``args``; return whether training on them would go right."""
    check_writable(args.output, "--output")
    cfg = load_config(args.config_file, args.opts) if args.config_file else get_hicl_cfg()
    register_custom(cfg)
    names = args.dataset or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise InputError("nothing to check: give --dataset NAME, or a config whose DATASETS names some")
    for name in names:
        check_registered(name)
    if args.config_file:
        check_inputs(cfg)
    hicl = cfg.MODEL.HICL
    output = Path(args.output)
    sheets = {name: output / f"{file_stem(name)}.png" for name in names}
    if args.pictures:
        check_own(sheets.values(), "--output")
    audits = []
    for name in sheets:
        audit = audit_dataset(
            name,
            windows=args.windows or hicl.WINDOWS,
            stride=args.stride,
            coverage=hicl.COVERAGE[0],
            resized=_training_size(cfg) if args.config_file else None,
            workers=args.workers,
            progress=counter,
        )
        if args.config_file:
            _compare_with_model(
                audit, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            )
        audits.append(audit)
    # What a part of the training data lacks, another may have.
    training = set(cfg.DATASETS.TRAIN)
    judge_absent(audits, training if training <= {*names} else ())
    is_hicl = cfg.MODEL.META_ARCHITECTURE == "HiCL" and hicl.ENABLED and hicl.CONTRAST == "hicl"
    takes_all_cells = hicl.CELL_CLASS == "middle" and hicl.WINDOWS[0] == 1
    if is_hicl and not takes_all_cells:
        for audit in audits:
            if audit.name in training:
                judge_purity(audit, hicl.PURITY[0])
    for audit in audits:
        console.show("\n".join(as_text(audit, hicl.PURITY[0])) + "\n")
    shared = find_shared(audits)
    for line in shared:
        console.show(f"warning: {line}")
    output.mkdir(parents=True, exist_ok=True)
    report = as_json(audits, shared)
    write_json(output / "audit.json", report)
    for audit in audits:
        _draw(audit, sheets[audit.name], args.pictures)
    console.show(f"report: {output / 'audit.json'}; pictures beside it")
    faults = sum(len(audit.faults) for audit in audits)
    console.show("no faults" if not faults else f"{counted(faults, 'fault')}: training would go wrong")
    return not faults


def _training_size(cfg: CfgNode) -> tuple[int, int] | None:
    """Return the median short side that training images are resized to, and the limit of their long side."""
    short = int(np.median(cfg.INPUT.MIN_SIZE_TRAIN))
    return (short, cfg.INPUT.MAX_SIZE_TRAIN) if short > 0 else None


def _compare_with_model(audit: Audit, num_classes: int, ignore_value: int) -> None:
    if audit.classes and len(audit.classes) != num_classes:
        audit.faults.append(
            f"the data set has {counted(len(audit.classes), 'class', 'classes')}, but "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}"
        )
    if audit.question.ignore_value != ignore_value:
        audit.faults.append(
            f"the data set ignores {audit.question.ignore_value}, but MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}"
        )


def _draw(audit: Audit, path: Path, count: int) -> None:
    """Draw a sheet of the images that can be read."""
    if not count or not audit.sizes:
        return
    samples = []
    for record in evenly_spaced(load_records(audit.name), count):
        try:
            image = read_image(record["file_name"], "RGB")
            labels = (
                read_labels(record["sem_seg_file_name"], record["file_name"], image.shape[:2])
                if "sem_seg_file_name" in record
                else np.full(image.shape[:2], audit.question.ignore_value)
            )
        except InputError:
            continue
        samples.append((Path(record["file_name"]).name, Image.fromarray(image), labels))
    pixels = audit.class_pixels()
    shares = (pixels / max(int(pixels.sum()), 1)).tolist()
    colours = MetadataCatalog.get(audit.name).get("stuff_colors") or palette(len(audit.classes))
    title = f"{audit.name}: {counted(audit.images, 'image')}"
    sheet = contact_sheet(
        title,
        samples,
        audit.classes,
        [tuple(colour) for colour in colours],
        shares,
        ignore_value=audit.question.ignore_value,
    )
    save_picture(sheet, path)
