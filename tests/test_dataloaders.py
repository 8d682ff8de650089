"""Every data set through the one function: what comes out, and what is said of missing and damaged files.

The published sets are stood in for by tiny ones of the same layout, and the network by a dictionary.
"""

import builtins
import gzip
import hashlib
import io
import pickle
import socket
import struct
import sys
import tarfile
import urllib.error
import urllib.request
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import dataloaders as module
from dataloaders import DATASETS, DataError, DatasetInfo, dataloaders, describe

PUBLISHED = DATASETS[:5]
TRAIN, TEST = 200, 100  # images in the stand-ins; CIFAR-100 needs every label in both


# ---- stand-ins for the published sets and for the network --------------------------------------------------


class StandIn:
    """A tiny set of the published layout: `files` as unpacked, `archives` as downloaded, and their `urls`."""

    def __init__(self, name, datasets, monkeypatch):
        self.name, self.monkeypatch = name, monkeypatch
        self.dataset = getattr(datasets, module._PUBLISHED[name][0])
        classes, channels = describe(name).num_classes, describe(name).in_channels
        side = 28 if channels == 1 else 32
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (n, channels, side, side), np.uint8) for n in (TRAIN, TEST)]
        self.labels = [np.arange(n) * 7 % classes for n in (TRAIN, TEST)]
        self.pack()

    def pack(self):
        """Writes `files` and `archives` from the images and labels, and tells torchvision their MD5s."""
        self.files, self.archives = {}, {}
        {"svhn": self._svhn, "cifar10": self._cifar, "cifar100": self._cifar}.get(self.name, self._mnist)()
        counts = module._PUBLISHED[self.name][0], TRAIN, TEST
        self.monkeypatch.setitem(module._PUBLISHED, self.name, counts)

    def _cifar(self):
        folder, dataset = self.dataset.base_folder, self.dataset
        key = "labels" if self.name == "cifar10" else "fine_labels"
        for split, attribute in enumerate(("train_list", "test_list")):
            names = [file for file, _ in getattr(dataset, attribute)]
            chunks = zip(
                np.array_split(self.images[split].reshape(len(self.images[split]), -1), len(names)),
                np.array_split(self.labels[split], len(names)),
                strict=True,
            )
            for name, (images, labels) in zip(names, chunks, strict=True):
                self.files[f"{folder}/{name}"] = pickle.dumps({"data": images, key: labels.tolist()})
            listed = [[name, md5(self.files[f"{folder}/{name}"])] for name in names]
            self.monkeypatch.setattr(dataset, attribute, listed)
        meta = pickle.dumps({dataset.meta["key"]: list(describe(self.name).classes)})
        self.files[f"{folder}/{dataset.meta['filename']}"] = meta
        self.monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": md5(meta)})
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w:gz") as archive:
            for name, content in self.files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self.archives[dataset.filename] = tar.getvalue()
        self.monkeypatch.setattr(dataset, "tgz_md5", md5(tar.getvalue()))
        self.urls = {dataset.url: tar.getvalue()}

    def _svhn(self):
        scipy_io = pytest.importorskip("scipy.io")
        listed, self.urls = {}, {}
        for split, images, labels in zip(("train", "test"), self.images, self.labels, strict=True):
            file = io.BytesIO()
            ten = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]  # SVHN calls the digit 0 ten
            scipy_io.savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": ten})
            url, name, _ = self.dataset.split_list[split]
            self.files[name] = self.archives[name] = self.urls[url] = file.getvalue()
            listed[split] = [url, name, md5(file.getvalue())]
        self.monkeypatch.setattr(self.dataset, "split_list", listed)

    def _mnist(self):
        contents, resources, self.urls = [], [], {}
        for images, labels in zip(self.images, self.labels, strict=True):
            contents.append(struct.pack(">4i", 2051, len(images), 28, 28) + images.tobytes())
            contents.append(struct.pack(">2i", 2049, len(labels)) + labels.astype(np.uint8).tobytes())
        for (file, _), content in zip(self.dataset.resources, contents, strict=True):
            folder = f"{self.dataset.__name__}/raw/"
            self.files[folder + file.removesuffix(".gz")] = content
            packed = self.archives[folder + file] = gzip.compress(content, mtime=0)
            self.urls[self.dataset.mirrors[0] + file] = packed
            resources.append((file, md5(packed)))
        self.monkeypatch.setattr(self.dataset, "resources", resources)

    def lay(self, root, files):
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

    def read(self, root, download=False, **options):
        return dataloaders(self.name, root, download=download, **options)


def md5(content):
    return hashlib.md5(content).hexdigest()


class Network:
    """Takes the place of `urlopen`: serves `pages`, refuses all else, and remembers what was asked for."""

    def __init__(self):
        self.pages, self.asked, self.timeouts = {}, [], set()

    def __call__(self, request, *args, **kwargs):
        url = getattr(request, "full_url", request)
        self.asked.append(url)
        self.timeouts.add(socket.getdefaulttimeout())
        if url not in self.pages:
            raise urllib.error.URLError("no\nnetwork")
        page = io.BytesIO(self.pages[url])
        page.url, page.length = url, len(self.pages[url])
        return page


@pytest.fixture(autouse=True)
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(urllib.request, "urlopen", network)
    return network


@pytest.fixture
def datasets():
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return datasets


@pytest.fixture(params=PUBLISHED)
def published(request, datasets, monkeypatch):
    return StandIn(request.param, datasets, monkeypatch)


@pytest.fixture
def stand_in(datasets, monkeypatch):
    return lambda name: StandIn(name, datasets, monkeypatch)


@pytest.fixture
def tree(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("ant", "bee", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def refused(call, *names):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    for name in names:
        assert str(name) in text
    return text


# ---- what is known without reading -------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS[:6])
def test_describe_needs_no_data(name, monkeypatch):
    real = builtins.__import__

    def guarded(module, *args, **kwargs):
        assert module.split(".")[0] not in ("torchvision", "sklearn")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    info = describe(name, "/nowhere")
    assert isinstance(info, DatasetInfo) and info.name == name and info.image_size == 32
    assert info.num_classes == len(set(info.classes)) == (100 if name == "cifar100" else 10)
    assert info.in_channels == len(info.mean) == len(info.std) == (1 if "mnist" in name else 3)


def test_describe_lists_the_classes_of_an_imagefolder(tree):
    info = describe("imagefolder", tree, image_size=48)
    assert info == DatasetInfo("imagefolder", ("ant", "bee", "cat"), 3, 48, None, None)
    refused(lambda: describe("imagefolder", tree / "nowhere"), tree / "nowhere" / "train")
    refused(lambda: describe("imagefolder", tree, image_size=0), "image size")


def test_an_unknown_name_is_refused_with_the_known_ones():
    for call in (describe, dataloaders):
        refused(lambda call=call: call("cifar"), "'cifar'", *DATASETS)


def test_the_recipe_is_the_published_one():
    assert {name: (describe(name).mean, describe(name).std) for name in PUBLISHED} == {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)),
        "svhn": ((0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)),
        "mnist": ((0.1307,), (0.3015,)),
        "fashionmnist": ((0.2860,), (0.3205,)),
    }


def test_class_names_are_those_of_torchvision(datasets):
    assert describe("fashionmnist").classes == tuple(datasets.FashionMNIST.classes)


# ---- the published sets ------------------------------------------------------------------------------------

RECIPES = {
    "cifar10": (4, True),
    "cifar100": (4, True),
    "svhn": (4, False),
    "mnist": (0, False),
    "fashionmnist": (0, True),
}


def assert_holds(published, train, test):
    for loader, images, labels in zip((train, test), published.images, published.labels, strict=True):
        border = (32 - images.shape[-1]) // 2
        padded = np.pad(images, ((0, 0), (0, 0), (border, border), (border, border)))
        assert (loader.images.numpy() == padded).all() and loader.images.is_contiguous()
        assert (loader.labels.numpy() == labels).all()


def test_a_set_is_read_as_it_lies_there(published, tmp_path, network):
    published.lay(tmp_path, published.files)
    for download in (False, True):
        info, train, test = published.read(tmp_path, download)
        assert info == describe(published.name)
        assert_holds(published, train, test)
    assert not network.asked
    assert (train.padding, train.flip) == RECIPES[published.name] and train.shuffle
    assert (test.padding, test.flip, test.shuffle) == (0, False, False)
    images, labels = next(iter(train))
    assert images.shape == (50, info.in_channels, 32, 32) and labels.shape == (50,)


def test_an_archive_is_unpacked_without_the_network(published, tmp_path, network):
    published.lay(tmp_path, published.archives)
    assert_holds(published, *published.read(tmp_path)[1:])
    assert not network.asked


def test_a_set_is_downloaded(published, tmp_path, network, capfd):
    network.pages = published.urls
    timeout = socket.getdefaulttimeout()
    assert_holds(published, *published.read(tmp_path / "new" / "folder", download=True)[1:])
    assert set(network.asked) == set(published.urls)
    assert all(0 < seconds <= 10 for seconds in network.timeouts)
    assert socket.getdefaulttimeout() == timeout


def test_a_missing_set_names_the_files_to_bring(published, tmp_path, network):
    timeout, root = socket.getdefaulttimeout(), tmp_path / "data"
    for download in (False, True):
        text = refused(lambda download=download: published.read(root, download), root)
        assert ("no network" in text) == download
        for name, content in published.archives.items():
            assert name.split("/")[-1] in text and md5(content) in text
        assert all(url in text for url in published.urls)
        assert bool(network.asked) == download
    assert socket.getdefaulttimeout() == timeout


def test_a_download_that_arrives_damaged_is_refused(published, tmp_path, network):
    network.pages = {url: content[: len(content) // 2] for url, content in published.urls.items()}
    refused(lambda: published.read(tmp_path, download=True), list(published.archives)[0], "damaged", "MD5")
    network.pages = published.urls  # and it does not stand in the way of the next attempt
    assert_holds(published, *published.read(tmp_path, download=True)[1:])


def test_a_damaged_archive_is_named(published, tmp_path):
    for name, content in published.archives.items():
        published.lay(tmp_path, published.archives | {name: content[:-50]})
        for download in (False, True):
            named = f"{tmp_path / name} is damaged", md5(content)
            text = refused(lambda download=download: published.read(tmp_path, download), *named)
            assert not any(md5(other) in text for other in published.archives.values() if other != content)
        for file in published.files:
            (tmp_path / file).unlink(missing_ok=True)


def test_a_damaged_or_missing_file_is_named_and_healed_by_its_archive(published, tmp_path, network):
    for name, content in published.files.items():
        for damaged in (content[: len(content) // 3], b"", None):
            published.lay(tmp_path, published.files | {name: damaged or b""})
            if damaged is None:
                (tmp_path / name).unlink()
            state = "missing" if damaged is None else "damaged"
            refused(lambda: published.read(tmp_path), f"{tmp_path / name} is {state}", "bring")
        if name not in published.archives:  # an SVHN file is its own archive
            published.lay(tmp_path, published.archives)
            assert_holds(published, *published.read(tmp_path)[1:])
            for archive in published.archives:
                (tmp_path / archive).unlink()


def test_a_damaged_file_is_downloaded_again(published, tmp_path, network):
    name, content = list(published.files.items())[-1]
    published.lay(tmp_path, published.files | {name: content[:20]})
    network.pages = published.urls
    assert_holds(published, *published.read(tmp_path, download=True)[1:])
    assert len(set(network.asked)) == 1


@pytest.mark.parametrize("fault", ["few images", "few labels", "label out of range", "class missing"])
def test_a_set_that_is_whole_but_wrong_is_refused(published, tmp_path, fault):
    if "mnist" in published.name and fault.startswith("few"):
        pytest.skip("the sizes of its files tell")
    classes = describe(published.name).num_classes
    if fault == "few images":
        published.images[0], published.labels[0] = published.images[0][:-5], published.labels[0][:-5]
    elif fault == "few labels":
        published.labels[1] = published.labels[1][:-1]
    elif fault == "label out of range":
        published.labels[0][3] = classes + 5
    else:
        published.labels[1][published.labels[1] == classes - 1] = 0
    published.pack()
    published.lay(tmp_path, published.files)
    refused(lambda: published.read(tmp_path), published.name, tmp_path, "damaged", "remove")


def test_files_of_the_right_size_and_wrong_content_are_refused(stand_in, tmp_path):
    mnist = stand_in("mnist")
    for i, (name, content) in enumerate(mnist.files.items()):
        mnist.lay(tmp_path, mnist.files | {name: np.random.default_rng(i).bytes(len(content))})
        refused(lambda: mnist.read(tmp_path), "mnist", tmp_path, "damaged")


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps({"neither": "data"}), pickle.dumps([1])])
def test_a_pickle_that_is_none_is_refused(stand_in, tmp_path, monkeypatch, content):
    cifar = stand_in("cifar10")
    cifar.lay(tmp_path, cifar.files | {"cifar-10-batches-py/test_batch": content})
    monkeypatch.setattr(cifar.dataset, "test_list", [["test_batch", md5(content)]])
    refused(lambda: cifar.read(tmp_path), "cifar10", tmp_path, "damaged")


def test_a_folder_that_cannot_be_made_is_named(published, tmp_path, network):
    (tmp_path / "file").write_bytes(b"in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(lambda root=root: published.read(root), root)
        refused(lambda root=root: published.read(root, download=True), root, "cannot write")
    assert not network.asked


def test_a_file_that_may_not_be_read_is_named(stand_in, tmp_path, monkeypatch):
    def forbidden(path, md5):
        raise PermissionError(13, "Permission denied", str(path))

    cifar = stand_in("cifar10")
    cifar.lay(tmp_path, cifar.files)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", forbidden)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    first = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    refused(lambda: cifar.read(tmp_path), f"{first} is not readable")


def test_an_archive_that_cannot_be_unpacked_is_named(stand_in, tmp_path):
    cifar = stand_in("cifar10")
    cifar.lay(tmp_path, cifar.archives | {"cifar-10-batches-py": b"a file in the way of the folder"})
    refused(lambda: cifar.read(tmp_path), tmp_path, cifar.dataset.filename, "by hand")


@pytest.mark.parametrize("error", [ImportError, RuntimeError, OSError, AttributeError])
def test_a_torchvision_that_does_not_fit_is_named_with_the_cure(tmp_path, monkeypatch, error):
    real = builtins.__import__

    def broken(module, *args, **kwargs):
        if module.startswith("torchvision"):
            raise error("operator torchvision::nms\ndoes not exist")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    refused(lambda: dataloaders("cifar10", tmp_path), "torchvision::nms", torch.__version__, "digits")
    dataloaders("digits")


# ---- digits ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return dataloaders("digits", "/nowhere", download=False)


def test_digits_have_a_stratified_split_that_is_always_the_same(digits):
    info, train, test = digits
    assert (train.num_images, test.num_images) == (1438, 359)
    counts = [Counter(loader.labels.tolist()) for loader in (train, test)]
    for label in range(info.num_classes):
        assert counts[1][label] == pytest.approx((counts[0][label] + counts[1][label]) * 359 / 1797, abs=1)
    _, _, other = dataloaders("digits", seed=5)
    assert torch.equal(other.images, test.images)
    assert test.labels[:12].tolist() == [6, 3, 2, 4, 0, 1, 8, 5, 7, 6, 6, 8]


def test_digits_are_the_bundled_images_enlarged(digits):
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    # where the 32 pixel centres fall among the 8, clamped at the border
    place = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    weights = np.stack([np.interp(place, np.arange(8), row) for row in np.eye(8)], axis=1)  # (32, 8)
    expected = weights @ (bundled.images * 255 / 16) @ weights.T
    ours = torch.cat([loader.images for loader in digits[1:]]).numpy()
    assert ours.shape == (1797, 3, 32, 32) and (ours == ours[:, :1]).all()
    keys = Counter(zip(map(bytes, np.rint(expected).astype(np.uint8)), bundled.target.tolist(), strict=True))
    labels = torch.cat([loader.labels for loader in digits[1:]]).tolist()
    assert Counter(zip(map(bytes, np.ascontiguousarray(ours[:, 0])), labels, strict=True)) == keys


def test_the_constants_of_the_digits_are_those_of_their_training_images(digits):
    info, train, _ = digits
    values = train.images.double() / 255
    assert info.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=5e-5)
    assert info.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=5e-5)


def test_digits_are_cropped_and_not_mirrored(digits):
    _, train, test = digits
    assert (train.padding, train.flip, train.shuffle) == (4, False, True)
    assert (test.padding, test.flip, test.shuffle) == (0, False, False)


def test_digits_without_scikit_learn_name_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(lambda: dataloaders("digits"), "scikit-learn", "pip install")


# ---- imagefolder and options -------------------------------------------------------------------------------


def test_an_imagefolder_is_measured_and_augmented_like_cifar(tree):
    info, train, test = dataloaders("imagefolder", str(tree), image_size=24, batch_size=4)
    values = train.images.numpy() / 255
    assert info.mean == pytest.approx(values.mean((0, 2, 3)))
    assert info.std == pytest.approx(values.std((0, 2, 3)))
    assert (train.padding, train.flip, train.shuffle) == (3, True, True)
    assert (train.num_images, test.num_images, len(train), len(test)) == (9, 6, 3, 2)
    images, labels = zip(*test, strict=True)
    assert torch.cat(labels).tolist() == [0, 0, 1, 1, 2, 2]
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (info.mean, info.std))
    assert torch.cat(images).numpy() == pytest.approx((test.images.numpy() / 255 - mean) / std, abs=1e-5)


def test_options_reach_the_loaders(tree):
    options = {"batch_size": 4, "image_size": 16}
    trains = [dataloaders("imagefolder", tree, seed=seed, **options)[1] for seed in (1, 1, 2)]
    first, again, other = (torch.cat([images for images, _ in train]) for train in trains)
    assert torch.equal(first, again) and not torch.equal(first, other)
    for loader in dataloaders("imagefolder", tree, channels_last=True, **options)[1:]:
        assert next(iter(loader))[0].is_contiguous(memory_format=torch.channels_last)
    assert next(iter(dataloaders("imagefolder", tree, **options)[1]))[0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
def test_a_limit_keeps_that_many_images(name, tree):
    _, train, test = dataloaders(name, tree, limit=5)
    assert train.num_images == len(train.labels) == test.num_images == len(test.labels) == 5
    refused(lambda: dataloaders(name, tree, limit=0), "limit")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_are_kept_on_the_device(tree):
    for loader in dataloaders("imagefolder", tree, device="cuda")[1:]:
        assert loader.images.is_cuda and all(part.is_cuda for part in next(iter(loader)))
