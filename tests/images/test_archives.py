"""Published sets from their files, their archives and the network, with tiny sets in the published layouts."""

import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from images.archives import TIMEOUT, published
from tests.images.checks import refused


def md5(content):
    return hashlib.md5(content).hexdigest()


def cifar10(dataset, images, labels, patch):
    files, listed = {}, [dataset.train_list[:1], dataset.test_list]
    for names, pixels, classes in zip(listed, images, labels, strict=True):
        path = f"{dataset.base_folder}/{names[0][0]}"
        files[path] = pickle.dumps({"data": pixels.reshape(len(pixels), -1), "labels": classes.tolist()})
        names[0] = [names[0][0], md5(files[path])]
    meta = files[f"{dataset.base_folder}/{dataset.meta['filename']}"] = pickle.dumps({"label_names": []})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    archives = {dataset.filename: buffer.getvalue()}
    patch(train_list=listed[0], test_list=listed[1], meta=dataset.meta | {"md5": md5(meta)})
    patch(tgz_md5=md5(buffer.getvalue()))
    return files, archives, {dataset.url: buffer.getvalue()}


def svhn(dataset, images, labels, patch):
    files, listed, urls = {}, {}, {}
    for split, pixels, classes in zip(("train", "test"), images, labels, strict=True):
        buffer = io.BytesIO()
        ten = np.where(classes == 0, 10, classes).astype(np.uint8)[:, None]  # SVHN calls the digit 0 ten
        pytest.importorskip("scipy.io").savemat(buffer, {"X": pixels.transpose(2, 3, 1, 0), "y": ten})
        url, name, _ = dataset.split_list[split]
        files[name] = urls[url] = buffer.getvalue()
        listed[split] = [url, name, md5(files[name])]
    patch(split_list=listed)
    return files, files, urls


def mnist(dataset, images, labels, patch):
    files, archives, resources = {}, {}, []
    contents = []
    for pixels, classes in zip(images, labels, strict=True):
        contents.append(struct.pack(">4i", 2051, len(pixels), 28, 28) + pixels.tobytes())
        contents.append(struct.pack(">2i", 2049, len(classes)) + classes.astype(np.uint8).tobytes())
    for (name, _), content in zip(dataset.resources, contents, strict=True):
        files[f"MNIST/raw/{name.removesuffix('.gz')}"] = content
        packed = archives[f"MNIST/raw/{name}"] = gzip.compress(content, mtime=0)
        resources.append((name, md5(packed)))
    patch(resources=resources)
    urls = {dataset.mirrors[0] + path.split("/")[-1]: content for path, content in archives.items()}
    return files, archives, urls


class TinySet:
    """A tiny set of a published layout: `files` as unpacked, `archives` as downloaded, and their `urls`."""

    def __init__(self, name, padding, write, monkeypatch):
        dataset = getattr(pytest.importorskip("torchvision.datasets", exc_type=ImportError), name)
        rng, shape = np.random.default_rng(0), (1, 28, 28) if padding else (3, 32, 32)
        images = [rng.integers(0, 256, (count, *shape), np.uint8) for count in (20, 10)]
        labels = [np.arange(count) * 7 % 10 for count in (20, 10)]

        def patch(**values):
            for attribute, value in values.items():
                monkeypatch.setattr(dataset, attribute, value)

        self.name, self.load = name, published(name, padding)
        self.files, self.archives, self.urls = write(dataset, images, labels, patch)
        padded = [F.pad(torch.from_numpy(pixels), (padding,) * 4) for pixels in images]
        self.splits = list(zip(padded, map(torch.from_numpy, labels), strict=True))

    def assert_read(self, root, download):
        for ours, theirs in zip(self.load(root, download), self.splits, strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]) and ours[0].is_contiguous()


def place(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


class Network:
    """Replaces `urlopen`: serves `pages`, answers 503 for all other addresses, and records the addresses."""

    def __init__(self):
        self.pages, self.asked = {}, []

    def __call__(self, request):
        assert socket.getdefaulttimeout() == TIMEOUT
        self.asked.append(request.full_url)
        if request.full_url not in self.pages:
            raise urllib.error.HTTPError(request.full_url, 503, "Service\nUnavailable", {}, None)
        page = io.BytesIO(self.pages[request.full_url])
        page.url, page.length = request.full_url, len(self.pages[request.full_url])
        return page


@pytest.fixture(autouse=True)
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(urllib.request, "urlopen", network)
    return network


@pytest.fixture(params=[("CIFAR10", 0, cifar10), ("SVHN", 0, svhn), ("MNIST", 2, mnist)], ids=lambda param: param[0])
def tiny(request, monkeypatch):
    return TinySet(*request.param, monkeypatch)


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("form", ["files", "archives"])
def test_files_and_archives_are_read_without_the_network(tiny, tmp_path, network, form, download):
    place(tmp_path, getattr(tiny, form))
    tiny.assert_read(tmp_path, download)
    assert not network.asked and socket.getdefaulttimeout() is None


def test_a_missing_set_is_downloaded(tiny, tmp_path, network):
    network.pages = tiny.urls
    tiny.assert_read(tmp_path / "new" / "folder", download=True)
    assert set(network.asked) == tiny.urls.keys()


def test_a_missing_set_names_the_files_and_their_address(tiny, tmp_path, network):
    for download, reason in ((False, "not found"), (True, "503")):
        line = refused(lambda download=download: tiny.load(tmp_path, download), tiny.name, tmp_path, reason)
        for url in tiny.urls:
            address, _, name = url.rpartition("/")
            assert address in line and name in line
        assert bool(network.asked) == download


def test_an_interrupted_download_is_refused_and_repeated(tiny, tmp_path, network):
    halves = {name: content[: len(content) // 2] for name, content in tiny.archives.items()}
    place(tmp_path, halves)
    refused(lambda: tiny.load(tmp_path, False), tiny.name)
    network.pages = {url: content[: len(content) // 2] for url, content in tiny.urls.items()}
    refused(lambda: tiny.load(tmp_path, True), tiny.name, "corrupted")
    network.pages = tiny.urls
    tiny.assert_read(tmp_path, download=True)


def test_a_damaged_file_is_refused_and_named_with_its_folder(tiny, tmp_path):
    name, content = list(tiny.files.items())[0]
    for damaged in (content[: len(content) // 3], b""):
        place(tmp_path, tiny.files | {name: damaged})
        refused(lambda: tiny.load(tmp_path, False), tiny.name, tmp_path, "damaged")
