"""Trees of image files: what is read, and what is said when something is amiss."""

import numpy as np
import pytest
import torch
from PIL import Image

from images import tree as imagefolder
from images.tree import class_names, read_tree
from tests.images.refusals import refused


def random_pixels(seed, height=16, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """Two classes, three training images and one test image each, 16x16 PNG."""
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png", random_pixels([label, i, count]))
    return tmp_path


def expected(count):
    images = [random_pixels([label, i, count]).transpose(2, 0, 1) for label in (0, 1) for i in range(count)]
    return np.stack(images)


def one_image(tmp_path, image, size, suffix="png", **options):
    """What becomes of one image in a tree that holds nothing else."""
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / split / "only" / f"0.{suffix}", **options)
    (images, _), _ = read_tree(tmp_path, size)
    return images[0].numpy()


# ---- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_file", [0, 2**30])  # threads, no threads
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_images_and_labels_come_in_the_order_of_class_and_file_names(tree, monkeypatch, small_file, chunk):
    monkeypatch.setattr(imagefolder, "SMALL_FILE", small_file)
    monkeypatch.setattr(imagefolder, "CHUNK", chunk)
    for (images, labels), count in zip(read_tree(tree, 16), (3, 1), strict=True):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images.numpy() == expected(count)).all()
        assert labels.tolist() == [0] * count + [1] * count


def test_classes_are_the_folders_of_the_training_images(tree):
    (tree / "train" / ".hidden").mkdir()
    (tree / "train" / "notes.txt").write_text("not a class")
    assert class_names(tree / "train") == ("ant", "bee")


def test_val_stands_in_for_test_and_test_is_preferred(tree):
    (tree / "test").rename(tree / "val")
    assert (read_tree(tree, 16)[1][0].numpy() == expected(1)).all()
    for name in ("ant", "bee"):
        save(tree / "test" / name / "0.png", np.zeros((16, 16, 3), np.uint8))
    assert read_tree(tree, 16)[1][0].sum() == 0


def test_hidden_and_other_files_are_passed_over(tree):
    for name in (".complete", ".DS_Store", ".thumb.png", "labels.csv", "readme"):
        (tree / "train" / "ant" / name).write_bytes(b"not an image")
    (tree / "train" / ".complete").touch()
    assert len(read_tree(tree, 16)[0][0]) == 6


@pytest.mark.parametrize("suffix", ["PNG", "jpg", "JPEG", "bmp", "gif", "webp", "ppm", "tif"])
def test_formats_are_those_of_pillow(tmp_path, suffix):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(one_image(tmp_path, image, 16, suffix)[:, 8, 8].astype(int) - (200, 100, 50)).max() < 12


def test_every_mode_becomes_rgb(tmp_path):
    grey = random_pixels(0)[:, :, 0]
    three = np.stack([grey] * 3)
    assert (one_image(tmp_path, Image.fromarray(grey), 16) == three).all()
    assert (one_image(tmp_path, Image.fromarray(grey).convert("LA"), 16) == three).all()
    assert (one_image(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257), 16) == three).all()
    assert (one_image(tmp_path, Image.fromarray(grey > 127), 16) == 255 * (three > 127)).all()
    colour = random_pixels(1)
    opaque = np.dstack([colour, np.full((16, 16), 255, np.uint8)])
    assert (one_image(tmp_path, Image.fromarray(opaque), 16) == colour.transpose(2, 0, 1)).all()
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (one_image(tmp_path, palette, 16) == np.array([10, 20, 30]).reshape(3, 1, 1)).all()


def test_large_images_are_averaged_not_sampled(tmp_path):
    board = np.indices((64, 96)).sum(0) % 2 * np.uint8(255)  # single pixels, black and white in turn
    image = one_image(tmp_path, Image.fromarray(board.astype(np.uint8)), 8)
    assert image.shape == (3, 8, 8)
    assert np.abs(image.astype(int) - 127).max() <= 2


def test_the_size_is_kept_where_it_fits(tmp_path):
    pixels = random_pixels(0, 7, 7)
    assert (one_image(tmp_path, Image.fromarray(pixels), 7) == pixels.transpose(2, 0, 1)).all()
    assert one_image(tmp_path, Image.fromarray(pixels), 20).shape == (3, 20, 20)


def test_a_limit_takes_images_of_all_classes(tree):
    (images, labels), (_, test_labels) = read_tree(tree, 16, limit=2)
    assert (images.numpy() == expected(3)[[0, 3]]).all()
    assert labels.tolist() == test_labels.tolist() == [0, 1]


def test_nothing_is_printed_away_from_a_terminal(tree, capfd):
    read_tree(tree, 16)
    assert capfd.readouterr() == ("", "")


# ---- what is amiss -----------------------------------------------------------------------------------------


def refuses(root, *names, size=16):
    refused(lambda: read_tree(root, size), *names)


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_missing_folder_is_named(tree, tmp_path):
    refuses(tmp_path / "nowhere", tmp_path / "nowhere" / "train")
    remove(tree / "test")
    refuses(tree, tree / "val", "test/<class>")
    remove(tree / "train")
    refuses(tree, tree / "train")


def test_a_split_without_classes_is_named(tree):
    for split in ("test", "train"):
        remove(tree / split)
        (tree / split).mkdir()
        refuses(tree, tree / split, "no class folders")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_named(tree, split):
    remove(tree / split / "bee")
    (tree / split / "bee").mkdir()
    refuses(tree, tree / split / "bee", "no images")


def test_a_class_that_is_in_one_split_alone_is_named(tree):
    save(tree / "test" / "cat" / "0.png", random_pixels(0))
    refuses(tree, tree / "test" / "cat", tree / "train")
    remove(tree / "test" / "cat")
    remove(tree / "test" / "bee")
    refuses(tree, tree / "test" / "bee")


@pytest.mark.parametrize("small_file", [0, 2**30])
def test_a_damaged_image_is_named(tree, monkeypatch, small_file):
    monkeypatch.setattr(imagefolder, "SMALL_FILE", small_file)
    path = tree / "train" / "bee" / "1.png"
    whole = path.read_bytes()
    holed = whole[:60] + bytes(50) + whole[110:]
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:40], holed):
        path.write_bytes(damaged)
        refuses(tree, path)


def test_a_dangling_link_is_named(tree):
    path = tree / "train" / "ant" / "9.png"
    path.symlink_to(tree / "nowhere.png")
    refuses(tree, path)


def test_floating_point_pixels_are_refused(tree):
    path = tree / "train" / "ant" / "9.tif"
    save(path, np.random.default_rng(0).random((16, 16), dtype=np.float32))
    refuses(tree, path, "8 or 16 bits")


def test_more_images_than_fit_into_memory_are_refused_before_reading(tree):
    (tree / "train" / "ant" / "0.png").write_bytes(b"never read")
    refuses(tree, tree, "GiB", "10000000x10000000", size=10**7)
