"""Downloads every export of a running review server and reads it with the format's own reader.

    python tests/ui/exports.py http://127.0.0.1:8080 [--out DIR]

COCO is read by pycocotools (and again by datumaro), Label Studio by label-studio-sdk, CVAT by datumaro, CSV by Python's csv,
the MVTec AD folder by its layout. What each saw is printed; anything that does not match the server's own list is an error and
ends it with 1. With --out the archives and folders stay there (DIR/mvtec is what `linesight evaluate --data` takes).

There must be reviewed anomalies. Nothing is changed on the server.
"""

import argparse
import csv
import io
import json
import pathlib
import re
import sys
import tempfile
import urllib.request
import xml.etree.ElementTree as ET
import zipfile
from collections import Counter

problems = []


def check(holds, what):
    """Remembers what does not hold."""
    if not holds:
        problems.append(what)
        print(f"  MISMATCH: {what}")


def get(url, token):
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return urllib.request.urlopen(request, timeout=300)


def listed(base, token):
    """Every reviewed anomaly, by id, as the API lists them."""
    items, cursor = {}, ""
    while True:
        page = json.load(get(f"{base}/api/v1/anomalies?reviewed=yes&limit=200&cursor={cursor}", token))
        items |= {item["id"]: item for item in page["items"]}
        cursor = page["next"]
        if not cursor:
            return items


def decision(item):
    return item["review"]["decision"]


def boxes(item):
    """The boxes of an anomaly's regions inside its picture; the judged box where there are none."""
    event = item["event"]
    width, height = event["image"]["width"], event["image"]["height"]

    def inside(r):
        w, h = min(r["w"], width - r["x"]), min(r["h"], height - r["y"])
        return (r["x"], r["y"], w, h) if w > 0 and h > 0 else None

    found = sorted(filter(None, (inside(r) for r in event["regions"])))
    part = event.get("part_box")
    return found or [part and inside(part) or (0, 0, width, height)]


def download(base, token, name, out, count):
    """Downloads and unpacks an export."""
    answer = get(f"{base}/api/v1/exports/{name}", token)
    check(int(answer.headers["X-Total-Count"]) == count, f"{name}: X-Total-Count {answer.headers['X-Total-Count']} of {count}")
    body = answer.read()
    print(f"{name}: {len(body):,} bytes")
    if name == "csv":
        (out / "anomalies.csv").write_bytes(body)
        return out / "anomalies.csv"
    archive = zipfile.ZipFile(io.BytesIO(body))
    check(archive.testzip() is None, f"{name}: the archive is damaged")
    folder = out / name
    archive.extractall(folder)
    return folder


def coco(folder, items):
    from datumaro import Dataset
    from pycocotools.coco import COCO

    wanted = {i: item for i, item in items.items() if decision(item) in ("defect", "false-alarm")}
    read = COCO(str(folder / "annotations/instances_default.json"))
    images = {image["file_name"].removesuffix(".jpg"): image for image in read.loadImgs(read.getImgIds())}
    check(images.keys() == wanted.keys(), f"COCO: {len(images)} images of {len(wanted)}")
    marked = 0
    for id, item in wanted.items():
        if id not in images:
            continue
        annotations = read.loadAnns(read.getAnnIds(imgIds=[images[id]["id"]]))
        expected = boxes(item) if decision(item) == "defect" else []
        check(sorted(tuple(a["bbox"]) for a in annotations) == sorted(expected), f"COCO: boxes of {id}")
        for a in annotations:
            mask = read.annToMask(a)
            size = item["event"]["image"]
            check(mask.shape == (size["height"], size["width"]), f"COCO: size of a mask of {id}")
            check(int(mask.sum()) == a["area"] > 0, f"COCO: area of a mask of {id}")
            x, y, w, h = a["bbox"]
            check(int(mask[y : y + h, x : x + w].sum()) == a["area"], f"COCO: a mask of {id} leaves its box")
            name = read.loadCats(a["category_id"])[0]["name"]
            check(name == (item["review"]["defect_type"] or "defect"), f"COCO: category {name!r} of {id}")
            marked += 1
    print(f"  pycocotools: {len(images)} images, {marked} annotations, {[c['name'] for c in read.loadCats(read.getCatIds())]}")
    again = Dataset.import_from(str(folder), "coco")
    found = sum(1 for item in again for _ in item.annotations)
    check(len(again) == len(wanted) and found >= marked, f"COCO: datumaro saw {len(again)} images, {found} annotations")
    with_pixels = sum(1 for item in again if item.media is not None and item.media.data is not None)
    check(with_pixels == len(wanted), f"COCO: datumaro could open {with_pixels} pictures")
    print(f"  datumaro: {len(again)} images, {found} annotations")


def label_studio(folder, items):
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    config = folder / "label-config.xml"
    interface = LabelInterface(config.read_text(encoding="utf-8"))
    interface.validate()
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    check({t["data"]["anomaly"] for t in tasks} == items.keys(), f"Label Studio: {len(tasks)} tasks of {len(items)}")
    for task in tasks:
        id = task["data"]["anomaly"]
        check((folder / "images" / task["data"]["image"].rsplit("/", 1)[1]).is_file(), f"Label Studio: no picture of {id}")
        for annotation in task["annotations"]:
            check(interface.validate_annotation(annotation), f"Label Studio: annotation of {id} does not fit the config")
        for prediction in task["predictions"]:
            check(interface.validate_prediction(prediction), f"Label Studio: prediction of {id} does not fit the config")
    # the converter wants ids, which Label Studio gives when it imports
    numbered = [
        {"id": n, **task, "annotations": [{"id": n * 10 + k, "completed_by": {"id": 1}, **a} for k, a in enumerate(task["annotations"])]}
        for n, task in enumerate(tasks, 1)
    ]
    source = folder / "numbered.json"
    source.write_text(json.dumps(numbered), encoding="utf-8")
    converter = Converter(str(config), str(folder), download_resources=False)
    seen, drawn = Counter(), 0
    for item in converter.iter_from_json_file(str(source)):
        id = item["input"]["anomaly"]
        output = item["output"]
        said = [choice for choices in output["decision"] for choice in choices["choices"]]
        check(said == [decision(items[id])], f"Label Studio: decision {said} of {id}")
        seen.update(said)
        rectangles = output.get("regions", [])
        expected = boxes(items[id]) if decision(items[id]) == "defect" else []
        found = []
        for r in rectangles:
            w, h = r["original_width"], r["original_height"]
            found.append((round(r["x"] * w / 100), round(r["y"] * h / 100), round(r["width"] * w / 100), round(r["height"] * h / 100)))
            check(r["rectanglelabels"] == [items[id]["review"]["defect_type"] or "defect"], f"Label Studio: label of {id}")
        check(sorted(found) == sorted(expected), f"Label Studio: rectangles of {id}")
        drawn += len(found)
    check(sum(seen.values()) == len(items), f"Label Studio: the converter saw {sum(seen.values())} tasks")
    print(f"  label-studio-sdk: {len(tasks)} tasks, {dict(seen)}, {drawn} rectangles")


def cvat(folder, items):
    from datumaro import AnnotationType, Dataset

    dataset = Dataset.import_from(str(folder), "cvat")
    names = [label.name for label in dataset.categories()[AnnotationType.label]]
    found = {item.id: item for item in dataset}
    check(found.keys() == items.keys(), f"CVAT: {len(found)} images of {len(items)}")
    seen, drawn = Counter(), 0
    for id, item in found.items():
        expected = sorted(boxes(items[id])) if decision(items[id]) == "defect" else []
        read = [a for a in item.annotations if a.type == AnnotationType.bbox]
        check(sorted(tuple(map(round, a.get_bbox())) for a in read) == expected, f"CVAT: boxes of {id}")
        for a in read:
            check(names[a.label] == (items[id]["review"]["defect_type"] or "defect"), f"CVAT: label of {id}")
        tags = [a.attributes["decision"] for a in item.annotations if a.type == AnnotationType.label]
        check(tags == [decision(items[id])], f"CVAT: decision {tags} of {id}")
        check(item.media is not None and item.media.data is not None, f"CVAT: picture of {id}")
        seen.update(tags)
        drawn += len(read)
    size = int(ET.parse(folder / "annotations.xml").findtext("meta/task/size"))
    check(size == len(items), f"CVAT: size {size} of {len(items)}")
    print(f"  datumaro: {len(found)} images, {dict(seen)}, {drawn} boxes, labels {names}")


def mvtec(folder, items):
    from PIL import Image

    wanted = {i: item for i, item in items.items() if decision(item) in ("defect", "false-alarm")}
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    check(rows.keys() == wanted.keys(), f"MVTec: {len(rows)} rows of {len(wanted)}")
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.csv"}
    named = {row["file"] for row in rows.values()} | {row["mask"] for row in rows.values() if row["mask"]}
    check(files == named, f"MVTec: files that the manifest does not know, or the other way: {sorted(files ^ named)[:5]}")
    kinds = Counter()
    for id, row in rows.items():
        item = wanted.get(id)
        if item is None:
            continue
        kind = row["file"].split("/")[1]
        kinds[kind] += 1
        check(re.fullmatch(r"[a-z0-9_-]*", kind) is not None, f"MVTec: folder {kind!r}")
        check((kind == "good") == (decision(item) == "false-alarm"), f"MVTec: {id} lies in {kind}")
        picture = Image.open(folder / row["file"])
        picture.load()
        if row["mask"]:
            check(row["mask"] == f"ground_truth/{kind}/{id}_mask.png", f"MVTec: name of the mask of {id}")
            mask = Image.open(folder / row["mask"])
            check(mask.mode == "L" and mask.size == picture.size, f"MVTec: mask of {id} is {mask.mode} {mask.size}")
            check(mask.getextrema() == (0, 255) or mask.getextrema() == (255, 255), f"MVTec: mask of {id} marks nothing")
        else:
            check(kind == "good", f"MVTec: {id} has no mask")
    print(f"  layout: {dict(kinds)}, {sum(1 for r in rows.values() if r['mask'])} masks")


def table(path, items):
    with open(path, encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    check(rows.keys() == items.keys(), f"CSV: {len(rows)} rows of {len(items)}")
    text = lambda cell: cell[1:] if cell.startswith("'") else cell
    for id, item in items.items():
        row, event, review = rows.get(id), item["event"], item["review"]
        if row is None:
            continue
        check(row["decision"] == review["decision"], f"CSV: decision of {id}")
        for column, value in [("line", event["line"]), ("comment", review["comment"]), ("defect_type", review["defect_type"])]:
            check(text(row[column]) == (value or ""), f"CSV: {column} of {id}")
        check(int(row["part"]) == event["part"] and json.loads(row["event"]) == event, f"CSV: event of {id}")
        risky = [c for c in row.values() if c[:1] in "=+-@\t\r" and c and not re.fullmatch(r"-?\d[\d.e+-]*", c)]
        check(not risky, f"CSV: {id} has a formula: {risky}")
    print(f"  csv: {len(rows)} rows, {dict(Counter(r['decision'] for r in rows.values()))}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of the review server")
    parser.add_argument("--out", type=pathlib.Path, help="keep what was downloaded here")
    parser.add_argument("--token", help="API token, where the server has accounts")
    arguments = parser.parse_args()
    base = arguments.url.rstrip("/")
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or pathlib.Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        items = listed(base, arguments.token)
        print(f"{len(items)} reviewed anomalies: {dict(Counter(map(decision, items.values())))}")
        check(items, "there are no reviewed anomalies")
        judged = sum(decision(i) in ("defect", "false-alarm") for i in items.values())
        readers = [("coco", coco, judged), ("label-studio", label_studio, len(items)), ("cvat", cvat, len(items))]
        for name, read, count in [*readers, ("mvtec", mvtec, judged), ("csv", table, len(items))]:
            try:
                read(download(base, arguments.token, name, out, count), items)
            except Exception as error:  # one reader that fails must not hide what the others say
                check(False, f"{name} cannot be read: {type(error).__name__}: {error}")
    print(f"{len(problems)} mismatches" if problems else "all exports match")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
