from __future__ import annotations

import multiprocessing
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import timm.data
from PIL import Image

from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.evidence.proof import images
from mlpdeploy.evidence.proof.images import (
    Preprocess,
    Skipped,
    image_files,
    load_folder,
    read_image,
    readable,
    transform,
)

SMALL = Preprocess((8, 8), crop=1.0)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256), (97, 401), (60, 50), (256, 700)])
@pytest.mark.parametrize(
    ("crop", "interpolation"), [(0.9, "bicubic"), (0.875, "bilinear"), (0.875, "bicubic"), (1.0, "lanczos")]
)
def test_the_arrays_are_those_of_timms_evaluation(size: tuple[int, int], crop: float, interpolation: str) -> None:
    image = picture(*size)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    theirs = timm.data.create_transform(
        (3, 224, 224), crop_pct=crop, interpolation=interpolation, mean=mean, std=std, is_training=False
    )(image)
    ours = transform(image, Preprocess((224, 224), crop, interpolation, mean, std))
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_timms_other_crops_are_its_own(mode: str) -> None:
    image, how = picture(300, 100), {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": mode}
    theirs = timm.data.create_transform((3, 64, 64), **how)(image).numpy()
    ours = transform(image, Preprocess((64, 64), 0.9, crop_mode=mode))
    np.testing.assert_array_equal(ours, theirs)
    assert (ours != transform(image, Preprocess((64, 64), 0.9))).any()


@pytest.mark.parametrize("size", [(300, 200), (120, 400)])
def test_a_target_that_is_not_square_keeps_the_aspect_as_timm_does(size: tuple[int, int]) -> None:
    image = picture(*size)
    theirs = timm.data.create_transform((3, 96, 160), crop_pct=0.875, interpolation="bicubic", is_training=False)
    ours = transform(image, Preprocess((96, 160)))
    np.testing.assert_allclose(ours, theirs(image).numpy(), rtol=0, atol=1e-6)


def test_any_layout_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    names = ["b/deep/er/2.PNG", "a/1.jpg", "3.webp", "a/notes.txt", ".hidden/4.png", "a/._5.png"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("not an image")
        else:
            kind = name.rsplit(".")[-1].lower().replace("jpg", "jpeg")
            picture(20, 10, seed=index).save(tmp_path / name, format=kind)
    found = load_folder(tmp_path, SMALL)
    assert [str(file.relative_to(tmp_path)) for file in found.files] == ["3.webp", "a/1.jpg", "b/deep/er/2.PNG"]
    assert found.arrays.shape == (3, 3, 8, 8) and found.labels is None and found.skipped == ()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_every_mode_becomes_three_channels_or_one(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.full((9, 9), 300, np.uint16)) if mode == "I;16" else picture(9, 9).convert(mode)
    image.save(tmp_path / "x.tiff")
    assert load_folder(tmp_path, SMALL).arrays.shape == (1, 3, 8, 8)
    grey = Preprocess((8, 8), crop=1.0, mean=(0.5,), std=(0.5,))
    assert load_folder(tmp_path, grey).arrays.shape == (1, 1, 8, 8)


def odd(folder: Path) -> Path:
    """A folder of one class with an image of every kind that decoders or viewers treat in a way of their own."""
    where = folder / "odd" / "0"
    where.mkdir(parents=True)
    wide = picture(90, 60, seed=3)
    wide.convert("CMYK").save(where / "cmyk.jpg")
    levels = np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
    Image.fromarray(levels).save(where / "16bit.png")
    Image.fromarray(levels.astype(np.int32) // 2).save(where / "32bit.tif")
    frames = [picture(90, 60, seed=seed) for seed in (4, 5, 6)]
    frames[0].save(where / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(where / "animated.webp", save_all=True, append_images=frames[1:], lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, says the camera
    wide.save(where / "rotated.jpg", exif=exif)
    alpha = wide.convert("RGBA")
    alpha.putalpha(picture(90, 60, "L", 7))
    alpha.save(where / "alpha.png")
    wide.convert("P", palette=Image.Palette.ADAPTIVE).save(where / "palette.png", transparency=0)
    picture(90, 60, "1").save(where / "bilevel.png")
    return folder / "odd"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm closes no file
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [3, 1])
def test_what_a_folder_holds_is_what_timms_own_evaluation_sees(tmp_path: Path, channels: int, workers: int) -> None:
    folder = odd(tmp_path)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    how = timm.data.create_transform((channels, 48, 48), crop_pct=0.9, interpolation="bicubic", mean=mean, std=std)
    theirs = timm.data.ImageDataset(str(folder), input_img_mode="RGB" if channels == 3 else "L", transform=how)
    skipped: list[Skipped] = []
    files = [Path(theirs.filename(place, absolute=True)) for place in range(len(theirs))]
    files += sorted({*image_files(folder)} - {*files})  # timm takes no .gif and .webp, and opens them as Pillow does
    ours = [*readable(files, Preprocess((48, 48), 0.9, "bicubic", mean, std), skipped, workers)]
    assert [file for file, _ in ours] == files and len(files) == 9 and skipped == []
    for place, (file, array) in enumerate(ours):
        expected = theirs[place][0] if place < len(theirs) else how(Image.open(file).convert(theirs.input_img_mode))
        np.testing.assert_array_equal(array, expected.numpy(), err_msg=file.name)


@pytest.mark.parametrize("killed", [True, False])
def test_workers_end_with_who_reads_and_one_that_is_killed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    for place in range(40):
        picture(20, 20).save(tmp_path / f"{place:02}.png")
    monkeypatch.setattr(images, "AT_ONCE", 1)
    with closing(readable(sorted(image_files(tmp_path)), SMALL, [], workers=2)) as read:
        next(read)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        if killed:
            workers[0].kill()
            with pytest.raises(MlpdeployError, match=r"a process that reads images has ended: .* give fewer --workers"):
                list(read)
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()


def broken(folder: Path) -> dict[str, bytes]:
    whole = folder / "whole.png"
    picture(64, 64).save(whole)
    data = whole.read_bytes()
    whole.unlink()
    return {
        "empty.png": b"",
        "text.jpg": b"<html>404</html>",
        "cut.png": data[: len(data) // 2],
        "flipped.png": data[::-1],
    }


def test_broken_images_are_named_and_skipped(tmp_path: Path) -> None:
    for name, data in broken(tmp_path).items():
        (tmp_path / name).write_bytes(data)
    picture(20, 20).save(tmp_path / "good.png")
    found = load_folder(tmp_path, SMALL)
    assert [file.name for file in found.files] == ["good.png"]
    assert {skip.file.name for skip in found.skipped} == {"empty.png", "text.jpg", "cut.png", "flipped.png"}
    assert all(
        skip.reason.startswith("is not a readable image: ") and "\n" not in skip.reason for skip in found.skipped
    )
    assert found.found == 5


def test_an_image_that_no_memory_holds_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(20, 20).save(tmp_path / "good.png")
    picture(20, 30).save(tmp_path / "huge.png")
    convert = Image.Image.convert

    def fail(image: Image.Image, mode: str) -> Image.Image:
        if 30 in image.size:
            raise MemoryError
        return convert(image, mode)

    monkeypatch.setattr(Image.Image, "convert", fail)
    found = load_folder(tmp_path, SMALL)
    assert [file.name for file in found.files] == ["good.png"]
    assert [(skip.file.name, skip.reason) for skip in found.skipped] == [
        ("huge.png", "is not a readable image: MemoryError")
    ]


@pytest.mark.slow
def test_an_image_that_becomes_larger_than_memory_is_skipped(tmp_path: Path) -> None:
    """A line of pixels whose shorter edge is resized to 8: the longer one grows by as much."""
    picture(20, 20).save(tmp_path / "good.png")
    Image.new("L", (1, 3_000_000)).save(tmp_path / "line.png", compress_level=1)
    found = load_folder(tmp_path, SMALL)
    assert [file.name for file in found.files] == ["good.png"]
    (skipped,) = found.skipped
    assert skipped.file.name == "line.png" and "of 1x3000000 pixels, it is too long" in skipped.reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in files")
def test_what_is_no_regular_file_is_skipped_and_nobody_waits(tmp_path: Path) -> None:
    picture(20, 20).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    found = load_folder(tmp_path, SMALL)
    assert [file.name for file in found.files] == ["good.png"]
    assert [(one.file.name, one.reason) for one in found.skipped] == [
        (name, "is not a readable image: it is no regular file") for name in ("pipe.png", "zeros.png")
    ]


def test_a_decompression_bomb_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(100, 100).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png", SMALL)


@pytest.mark.parametrize("case", ["missing", "file", "empty", "text", "broken"])
def test_no_image_at_all_is_one_line(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "data"
    if case == "file":
        folder.write_text("x")
    elif case != "missing":
        folder.mkdir()
        if case == "text":
            (folder / "a.txt").write_text("x")
        if case == "broken":
            (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError) as raised:
        load_folder(folder, SMALL)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


def classes(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name / "inner").mkdir(parents=True)
        picture(9, 9).save(folder / name / "inner" / "x.png")
    return folder


def test_labels_come_from_numbers_or_from_a_full_set_of_names(tmp_path: Path) -> None:
    numbers = load_folder(classes(tmp_path / "numbers", "7", "003", "12"), SMALL, num_classes=1000)
    assert numbers.labels is not None and numbers.labels.tolist() == [3, 12, 7]
    names = classes(tmp_path / "names", "dog", "ant", "cat")
    labels = load_folder(names, SMALL, num_classes=3).labels
    assert labels is not None and labels.tolist() == [0, 1, 2]
    assert load_folder(names, SMALL, num_classes=1000).labels is None
    assert load_folder(names, SMALL).labels is None


def test_an_image_outside_the_class_folders_makes_labels_unknown(tmp_path: Path) -> None:
    folder = classes(tmp_path, "0", "1")
    picture(9, 9).save(folder / "stray.png")
    assert load_folder(folder, SMALL, num_classes=2).labels is None


def test_numbers_beyond_the_networks_classes_are_no_labels(tmp_path: Path) -> None:
    assert load_folder(classes(tmp_path, "2023", "2024"), SMALL, num_classes=1000).labels is None


def test_the_limit_is_spread_over_the_whole_folder(tmp_path: Path) -> None:
    folder = classes(tmp_path, *(f"{i}" for i in range(10)))
    found = load_folder(folder, SMALL, limit=5, num_classes=10)
    assert found.labels is not None and found.labels.tolist() == [0, 2, 4, 6, 8] and found.found == 10


def test_a_loop_of_links_ends_and_linked_folders_are_read(tmp_path: Path) -> None:
    real = classes(tmp_path / "real", "0")
    data = tmp_path / "data"
    data.mkdir()
    os.symlink(real, data / "linked")
    os.symlink(data, real / "loop")
    assert len(load_folder(data, SMALL).files) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "cubist"}, {"mean": (0.5, 0.5)}, {"std": (1.0, 0.0, 1.0)}, {"crop": 0.0}, {"size": (0, 8)},
        {"crop_mode": "oval"},
    ],
)  # fmt: skip
def test_a_preprocessing_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        Preprocess(**({"size": (8, 8)} | wrong))
