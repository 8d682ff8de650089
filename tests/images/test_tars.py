"""Images in tars: the same as in folders, wherever they lie in the tar."""

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dataloaders import dataloaders, describe
from images.stream import StreamLoader
from images.tree import list_tree, read_tree
from tests.images.refusals import refused


def pixels(index):
    return np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def png(index):
    file = io.BytesIO()
    Image.fromarray(pixels(index)).save(file, "png")
    return file.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(index):
    """An image's members, the class before or behind the image, and one that nobody asked for."""
    members = [(f"./n/{index:04d}.PNG", png(index)), (f"./n/{index:04d}.cls", b"%d\n" % (index % 3))]
    return [*members[:: (-1) ** index], (f"./n/{index:04d}.mask.png", b"no image")]


@pytest.fixture
def shards(tmp_path):
    """Twelve training images in three tars, four validation images in one."""
    for shard in range(3):
        members = [member for index in range(4 * shard, 4 * shard + 4) for member in sample(index)]
        write(tmp_path / "train" / f"{shard:03d}.tar", members)
    write(tmp_path / "val" / "all.tar", [member for index in range(100, 104) for member in sample(index)])
    return tmp_path


def test_images_and_labels_come_in_the_order_of_the_tars(shards):
    for (images, labels), indices in zip(read_tree(shards, 16), (range(12), range(100, 104)), strict=True):
        assert (images.numpy() == np.stack([pixels(index).transpose(2, 0, 1) for index in indices])).all()
        assert labels.dtype == torch.int64 and labels.tolist() == [index % 3 for index in indices]


def test_classes_are_the_numbers_up_to_the_largest(shards):
    assert describe("imagefolder", shards).classes == ("0", "1", "2")
    write(shards / "train" / "more.tar", [("a.png", png(0)), ("a.cls", b"6")])
    assert describe("imagefolder", shards).num_classes == 7


def test_a_limit_takes_images_of_all_tars(shards):
    (places, labels), _ = list_tree(shards, 3)
    assert [os.path.basename(name) for name in places["name"]] == [b"0000.PNG", b"0004.PNG", b"0008.PNG"]
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_are_streamed_like_files(shards, tmp_path, workers):
    (places, labels), _ = list_tree(shards)
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    files = np.array([os.fsencode(tmp_path / f"{index}.png") for index in range(12)])
    options = {"size": 8, "batch_size": 5, "random_crop": True, "shuffle": True, "flip": True}
    ours = StreamLoader(places, labels, [0] * 3, [1] * 3, workers=workers, **options)
    theirs = StreamLoader(files, labels, [0] * 3, [1] * 3, workers=0, **options)
    for (images, classes), (others, other_classes) in zip(ours, theirs, strict=True):
        assert torch.equal(images, others) and torch.equal(classes, other_classes)


def test_images_are_held_out_of_tars_too(shards):
    options = {"image_size": 16, "validation": 3, "batch_size": 4}
    _, *streamed = dataloaders("imagefolder", shards, in_memory="no", workers=0, **options)
    _, *kept = dataloaders("imagefolder", shards, **options)
    for ours, theirs in zip(streamed, kept, strict=True):
        assert torch.equal(ours.labels, theirs.labels) and len(ours) == len(theirs)
    assert streamed[0].num_images == 9


# ---- what is amiss -----------------------------------------------------------------------------------------


def refuses(root, *names):
    refused(lambda: read_tree(root, 16), *names)


def test_a_damaged_image_is_named_with_its_tar(shards):
    path = shards / "train" / "001.tar"
    write(path, [("good.png", png(0)), ("good.cls", b"0"), ("bad.png", png(1)[:60]), ("bad.cls", b"1")])
    refuses(shards, "bad.png", path)


def test_a_damaged_tar_is_named(shards):
    path = shards / "train" / "001.tar"
    whole = path.read_bytes()
    for damaged in (b"", b"not a tar", whole[:700], whole[: len(whole) // 3]):
        path.write_bytes(damaged)
        os.utime(path, ns=(0, len(damaged)))
        refuses(shards, path)


def test_an_image_without_a_class_is_named(shards):
    path = shards / "train" / "001.tar"
    for members in ([("a.png", png(0))], [("a.png", png(0)), ("a.cls", b"cat")], [("a.cls", b"-1"), ("a.png", png(0))]):
        write(path, members)
        os.utime(path, ns=(0, hash(str(members)) % 2**40))
        refuses(shards, path, "a.", "class")


def test_a_tar_without_images_is_named(shards):
    write(shards / "train" / "001.tar", [("a.txt", b"text"), ("a.cls", b"1")])
    refuses(shards, shards / "train" / "001.tar", "no images")


def test_a_class_that_is_in_the_test_tars_alone_is_named(shards):
    write(shards / "val" / "more.tar", [("a.png", png(0)), ("a.cls", b"3")])
    refuses(shards, shards / "val" / "3", shards / "train")
