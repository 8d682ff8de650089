"""dataloaders(): descriptions of the data sets, their augmentation, and the options."""

import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import dataloaders as module
from dataloaders import DATASETS, BatchLoader, DataSet, StreamLoader, dataloaders, describe, kept_in_memory
from tests.images.checks import refused


def test_describe_needs_no_data(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in DATASETS.keys() - {"imagefolder"}:
        info = describe(name, "/nowhere")
        assert info.num_classes == len(set(info.classes)) == (100 if name == "cifar100" else 10)
        assert info.in_channels == len(info.mean) == len(info.std) == (1 if "mnist" in name else 3)


def test_describe_lists_the_classes_of_an_imagefolder(data):
    info = describe("imagefolder", data, image_size=48)
    assert (info.classes, info.image_size, info.in_channels, info.mean) == (("blue", "green", "red"), 48, 3, None)
    refused(lambda: describe("imagefolder", data / "nowhere"), data / "nowhere" / "train")
    refused(lambda: describe("imagefolder", data, image_size=0), "image size")


def test_an_unknown_name_is_refused_with_the_known_ones():
    for call in (describe, dataloaders):
        refused(lambda call=call: call("cifar"), "'cifar'", *DATASETS)


def stripes(root, download):
    """`load` of a data set that is not 32x32 and has one channel."""
    assert download is False
    splits = []
    for count in (30, 10):
        labels = torch.arange(count) % 2
        splits.append((torch.randint(256, (count, 1, 20, 20), dtype=torch.uint8), labels))
    return splits


def test_a_data_set_of_any_image_size_is_registered_by_one_entry(monkeypatch, tmp_path):
    line = DataSet(load=stripes, classes=("bright", "dark"), in_channels=1, image_size=20, crop=2, flip=True)
    monkeypatch.setitem(DATASETS, "stripes", line)
    info, train, test = dataloaders("stripes", str(tmp_path), download=False, batch_size=10, validation=5)
    assert (info.num_classes, describe("stripes")) == (2, line)
    assert (train.padding, train.flip, train.shuffle) == (2, True, True)
    assert (test.padding, test.flip, test.shuffle) == (0, False, False)
    assert (train.num_images, test.num_images) == (25, 5)
    images, labels = next(iter(train))
    assert images.shape == (10, 1, 20, 20) and labels.dtype == torch.int64
    values = torch.cat([train.images, test.images]).double() / 255
    assert info.mean == pytest.approx([values.mean().item()])  # computed, since the line has no mean


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "named"),
    [
        ((4, 3, 20, 20), torch.uint8, [0] * 4, "(4, 3, 20, 20)"),
        ((4, 1, 20, 20), torch.uint8, [0] * 3, "(3,)"),
        ((4, 1, 20, 20), torch.uint8, [0, 1, 2, 3], "0 to 1"),
    ],
)
def test_images_that_differ_from_their_registration_are_refused(monkeypatch, shape, dtype, labels, named):
    split = torch.zeros(shape, dtype=dtype), torch.tensor(labels)
    line = DataSet(lambda root, download: (split, split), ("bright", "dark"), in_channels=1, image_size=20)
    monkeypatch.setitem(DATASETS, "stripes", line)
    refused(lambda: dataloaders("stripes"), "stripes", named)


def test_a_torchvision_that_cannot_be_imported_is_named_with_a_remedy(tmp_path, monkeypatch):
    def broken(module):
        raise RuntimeError(f"operator {module}::nms\ndoes not exist")

    monkeypatch.setattr("images.info.import_module", broken)
    refused(lambda: dataloaders("cifar10", tmp_path), "torchvision.datasets::nms", torch.__version__, "digits")
    refused(lambda: StreamLoader([], torch.zeros(0), [0], [1], size=8, batch_size=1), "--in-memory yes")
    dataloaders("digits")


def test_digits_have_a_stratified_split_that_is_always_the_same():
    _, train, test = dataloaders("digits", "/nowhere", download=False)
    assert (train.num_images, test.num_images) == (1438, 359)
    assert test.labels.bincount() == pytest.approx(np.bincount(load_digits().target) * 359 / 1797, abs=1)
    assert torch.equal(dataloaders("digits", seed=5)[2].images, test.images)
    assert test.labels[:12].tolist() == [6, 3, 2, 4, 0, 1, 8, 5, 7, 6, 6, 8]


def test_digits_are_the_bundled_images_enlarged():
    bundled = load_digits()
    info, *digits = dataloaders("digits")
    # where the 32 pixel centres fall among the 8, clamped at the border
    place = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    weights = np.stack([np.interp(place, np.arange(8), row) for row in np.eye(8)], axis=1)  # (32, 8)
    expected = weights @ (bundled.images * 255 / 16) @ weights.T
    ours = torch.cat([loader.images for loader in digits]).numpy()
    assert ours.shape == (1797, 3, 32, 32) and (ours == ours[:, :1]).all()
    keys = Counter(zip(map(bytes, np.rint(expected).astype(np.uint8)), bundled.target.tolist(), strict=True))
    labels = torch.cat([loader.labels for loader in digits]).tolist()
    assert Counter(zip(map(bytes, np.ascontiguousarray(ours[:, 0])), labels, strict=True)) == keys
    values = digits[0].images.double() / 255  # the constants are those of the training images
    assert info.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=5e-5)
    assert info.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=5e-5)


def test_digits_without_scikit_learn_name_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(lambda: dataloaders("digits"), "scikit-learn", "pip install")


def test_an_imagefolder_is_normalised_by_its_statistics_and_augmented_like_cifar(data):
    info, train, test = dataloaders("imagefolder", str(data), image_size=24, batch_size=4)
    values = train.images.numpy() / 255
    assert info.mean == pytest.approx(values.mean((0, 2, 3)))
    assert info.std == pytest.approx(values.std((0, 2, 3)))
    assert (train.padding, train.flip, train.shuffle) == (3, True, True)
    assert (train.num_images, test.num_images, len(train), len(test)) == (36, 12, 9, 3)
    images, labels = zip(*test, strict=True)
    assert torch.cat(labels).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (info.mean, info.std))
    assert torch.cat(images).numpy() == pytest.approx((test.images.numpy() / 255 - mean) / std, abs=1e-5)


def test_images_larger_than_half_of_the_free_memory_are_streamed(data, monkeypatch):
    needed = 2 * 48 * 3 * 24 * 24
    imagefolder = partial(kept_in_memory, "imagefolder", data, image_size=24)
    for available, loader in ((needed, BatchLoader), (needed - 1, StreamLoader)):
        monkeypatch.setattr(module, "available_memory", lambda available=available: available)
        assert imagefolder() == (loader is BatchLoader) and not imagefolder(copies=2)
        assert imagefolder(in_memory="yes") and not imagefolder(in_memory="no") and kept_in_memory("digits")
        assert {type(each) for each in dataloaders("imagefolder", data, image_size=24, workers=0)[1:]} == {loader}
    monkeypatch.setattr(module, "available_memory", lambda: 2 * needed)
    for free in (needed, needed - 1):  # of each GPU
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 4 * needed))
        assert imagefolder(device="cuda", copies=2) == (free == needed)


def test_only_an_imagefolder_is_streamed():
    refused(lambda: dataloaders("digits", in_memory="no"), "digits", "imagefolder")
    with pytest.raises(ValueError, match="auto, yes, no, not True"):
        dataloaders("digits", in_memory=True)


def test_mean_and_std_of_a_streamed_set_are_those_of_evenly_spaced_images(data, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 4)
    info, _, _ = dataloaders("imagefolder", data, image_size=24, in_memory="no", workers=0)
    _, kept, _ = dataloaders("imagefolder", data, image_size=24)
    values = kept.images[[0, 9, 18, 27]].numpy() / 255
    assert info.mean == pytest.approx(values.mean((0, 2, 3)))
    assert info.std == pytest.approx(values.std((0, 2, 3)))
