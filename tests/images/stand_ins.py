"""Tiny sets that stand in for the published ones, and a dictionary that stands in for the network."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import urllib.error

import numpy as np
import pytest

from dataloaders import describe
from images.archives import PUBLISHED, read_published


def md5(content):
    return hashlib.md5(content).hexdigest()


class StandIn:
    """A tiny set of the published layout: `files` as unpacked, `archives` as downloaded, and their `urls`."""

    def __init__(self, name, datasets, monkeypatch):
        self.name, self.monkeypatch, self.info = name, monkeypatch, describe(name)
        self.dataset = getattr(datasets, PUBLISHED[name][0])
        classes, channels = self.info.num_classes, self.info.in_channels
        side = 28 if channels == 1 else 32
        rng = np.random.default_rng(0)
        counts = 2 * classes, classes
        self.images = [rng.integers(0, 256, (n, channels, side, side), np.uint8) for n in counts]
        self.labels = [np.arange(n) * 7 % classes for n in counts]
        monkeypatch.setitem(PUBLISHED, name, (self.dataset.__name__, *counts))
        self.pack()

    def pack(self):
        """Write `files` and `archives` from the images and labels, and tell torchvision their MD5s."""
        self.files, self.archives = {}, {}
        {"svhn": self._svhn, "cifar10": self._cifar, "cifar100": self._cifar}.get(self.name, self._mnist)()

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
        meta = pickle.dumps({dataset.meta["key"]: list(self.info.classes)})
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

    def read(self, root, download=False):
        return read_published(self.info, root, download)


class Network:
    """Takes the place of `urlopen`: serves `pages`, refuses all else, and remembers what was asked for."""

    def __init__(self):
        self.pages, self.asked = {}, []

    def __call__(self, request, timeout=float("inf")):
        assert 0 < timeout <= 10
        url = request.full_url
        self.asked.append(url)
        if url not in self.pages:
            raise urllib.error.URLError("no\nnetwork")
        page = io.BytesIO(self.pages[url])
        page.length = len(self.pages[url])
        return page
