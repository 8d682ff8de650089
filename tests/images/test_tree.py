"""Trees of image files: the images that are read, and the errors for unusable trees."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from images import tree as imagefolder
from images.tree import list_tree, read_tree
from tests.images.checks import refused


def random_pixels(seed, height=16, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


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


def test_images_and_labels_come_in_the_order_of_class_and_file_names(tree, monkeypatch):
    monkeypatch.setattr(imagefolder, "CHUNK", 4)
    for (images, labels), count in zip(read_tree(tree, 16), (3, 1), strict=True):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images.numpy() == expected(count)).all()
        assert labels.tolist() == [0] * count + [1] * count


def test_val_replaces_a_test_without_class_folders(tree):
    (tree / "test").rename(tree / "val")
    assert (read_tree(tree, 16)[1][0].numpy() == expected(1)).all()
    save(tree / "test" / "0.png", random_pixels(9))  # ImageNet's test images have no labels
    with pytest.warns(UserWarning, match="the test images are those in .*val"):
        assert (read_tree(tree, 16)[1][0].numpy() == expected(1)).all()
    for name in ("ant", "bee"):
        save(tree / "test" / name / "0.png", np.zeros((16, 16, 3), np.uint8))
    assert read_tree(tree, 16)[1][0].sum() == 0


def test_other_files_are_ignored(tree):
    folder = tree / "train" / "ant"
    for name in (".DS_Store", ".thumb.png", "labels.csv", "features.h5", "clip.mpg", "plot.eps", "notes.pdf", "readme"):
        (folder / name).write_bytes(b"not an image")
    (folder / "crops.png").mkdir()
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for a writer
    (tree / "train.tar").touch()
    (tree / "train" / "ant.tar").touch()
    assert len(read_tree(tree, 16)[0][0]) == 6


def test_images_in_subfolders_of_a_class_are_those_of_torchvision(tree):
    for i, name in enumerate(("ant/images", "ant/images/deeper", "bee/.hidden", "bee/b")):
        save(tree / "train" / name / "9.JPEG", random_pixels(i))
    (paths, labels), _ = list_tree(tree)
    found = list(zip(map(os.fsdecode, paths), labels.tolist(), strict=True))
    theirs = [(path, label) for path, label in ImageFolder(tree / "train").samples if ".hidden" not in path]
    assert sorted(found) == sorted(theirs) and len(found) == 9


def test_common_formats_are_read(tree):
    for suffix in ("PNG", "jpg", "bmp", "gif", "webp", "ppm", "tif", "jp2", "tga"):
        save(tree / "train" / "ant" / f"9.{suffix}", np.full((16, 16, 3), 200, np.uint8))
    images = read_tree(tree, 16)[0][0][3:-3]
    assert len(images) == 9 and (images.int() - 200).abs().max() <= 2


def test_larger_images_are_averaged(tree):
    board = np.indices((64, 96)).sum(0) % 2 * np.uint8(255)  # single pixels, black and white in turn
    save(tree / "train" / "ant" / "0.png", board.astype(np.uint8))
    image = read_tree(tree, 8)[0][0][0].numpy()
    assert image.shape == (3, 8, 8) and np.abs(image.astype(int) - 127).max() <= 2


def refuses(root, *names, size=16):
    refused(lambda: read_tree(root, size), *names)


def test_a_missing_folder_is_named(tree):
    for split in ("test", "train"):
        shutil.rmtree(tree / split)
        refuses(tree, tree / split, "val/<class>")
        (tree / split).mkdir()
        refuses(tree, tree / split, "no class folders")


def test_a_class_that_is_in_one_split_alone_is_named(tree):
    save(tree / "test" / "cat" / "0.png", random_pixels(0))
    refuses(tree, tree / "test" / "cat", tree / "train")
    shutil.rmtree(tree / "test" / "cat")
    shutil.rmtree(tree / "test" / "bee")
    refuses(tree, tree / "test" / "bee")
    (tree / "test" / "bee").mkdir()
    refuses(tree, tree / "test" / "bee", "no images")


def test_a_damaged_image_is_named(tree):
    path = tree / "train" / "bee" / "1.png"
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:60] + bytes(50) + whole[110:]):
        path.write_bytes(damaged)
        refuses(tree, path)


@pytest.mark.parametrize(("link", "target"), [("9.png", "nowhere.png"), ("again", ".")], ids=["dangling", "circle"])
def test_a_link_that_leads_nowhere_is_named(tree, link, target):
    folder = tree / "train" / "ant"
    (folder / link).symlink_to(folder / target)
    refuses(tree, folder / link)


def test_more_images_than_fit_into_memory_are_refused_before_reading(tree):
    (tree / "train" / "ant" / "0.png").write_bytes(b"never read")
    refuses(tree, tree, "GiB", "10000000x10000000", size=10**7)
