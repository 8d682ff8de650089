"""Published sets from their files, their archives and the network: what comes out, and what is said of damaged ones."""

import pickle
import urllib.request

import numpy as np
import pytest

from images.archives import PUBLISHED
from tests.images.refusals import refused
from tests.images.stand_ins import Network, StandIn, md5


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


@pytest.fixture(params=list(PUBLISHED))
def published(request, datasets, monkeypatch):
    return StandIn(request.param, datasets, monkeypatch)


@pytest.fixture
def stand_in(datasets, monkeypatch):
    return lambda name: StandIn(name, datasets, monkeypatch)


# ---- what is read -------------------------------------------------------------------------------------------


def assert_holds(published, splits):
    for (images, labels), pixels, classes in zip(splits, published.images, published.labels, strict=True):
        border = (32 - pixels.shape[-1]) // 2
        padded = np.pad(pixels, ((0, 0), (0, 0), (border, border), (border, border)))
        assert (images.numpy() == padded).all() and images.is_contiguous()
        assert (labels.numpy() == classes).all()


def test_a_set_is_read_as_it_lies_there(published, tmp_path, network):
    published.lay(tmp_path, published.files)
    for download in (False, True):
        assert_holds(published, published.read(tmp_path, download))
    assert not network.asked


def test_an_archive_is_unpacked_without_the_network(published, tmp_path, network):
    published.lay(tmp_path, published.archives)
    assert_holds(published, published.read(tmp_path))
    assert not network.asked


def test_a_set_is_downloaded(published, tmp_path, network, capfd):
    network.pages, root = published.urls, tmp_path / "new" / "folder"
    assert_holds(published, published.read(root, download=True))
    assert sorted(network.asked) == sorted(published.urls)
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert found == published.files.keys() | published.archives.keys()
    assert capfd.readouterr() == ("", "")  # away from a terminal


def test_a_damaged_file_is_downloaded_again(published, tmp_path, network):
    name, content = list(published.files.items())[-1]
    published.lay(tmp_path, published.files | {name: content[: len(content) // 2]})
    network.pages = published.urls
    assert_holds(published, published.read(tmp_path, download=True))
    assert set(network.asked) <= published.urls.keys()


# ---- what is amiss --------------------------------------------------------------------------------------------


def test_a_missing_set_names_the_files_to_bring(published, tmp_path, network):
    root = tmp_path / "data"
    for download in (False, True):
        text = refused(lambda download=download: published.read(root, download), root, "missing")
        assert ("no network" in text) == download
        for name, content in published.archives.items():
            assert name.split("/")[-1] in text and md5(content) in text
        assert all(url in text for url in published.urls)
        assert bool(network.asked) == download


def test_a_download_that_arrives_damaged_is_refused(published, tmp_path, network):
    network.pages = {url: content[: len(content) // 2] for url, content in published.urls.items()}
    url = list(published.urls)[0]
    refused(lambda: published.read(tmp_path, download=True), f"{url} sends is damaged", "MD5")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    network.pages = published.urls
    assert_holds(published, published.read(tmp_path, download=True))


def test_a_damaged_archive_is_named(published, tmp_path):
    for name, content in published.archives.items():
        published.lay(tmp_path, published.archives | {name: content[:-50]})
        for download in (False, True):
            named = f"damaged: {tmp_path / name}", md5(content)
            text = refused(lambda download=download: published.read(tmp_path, download), *named)
            assert not any(md5(other) in text for other in published.archives.values() if other != content)
        for file in published.files:
            (tmp_path / file).unlink(missing_ok=True)


def test_a_damaged_or_missing_file_is_refused_and_healed_by_its_archive(published, tmp_path):
    for name, content in published.files.items():
        for damaged in (content[: len(content) // 3], b"", None):
            published.lay(tmp_path, published.files | {name: damaged or b""})
            if damaged is None:
                (tmp_path / name).unlink()
            refused(lambda: published.read(tmp_path), published.name, tmp_path, "bring")
        if name not in published.archives:  # an SVHN file is its own archive
            published.lay(tmp_path, published.archives)
            assert_holds(published, published.read(tmp_path))
            for archive in published.archives:
                (tmp_path / archive).unlink()


@pytest.mark.parametrize("fault", ["few images", "few labels", "label out of range", "class missing"])
def test_a_set_that_is_whole_but_wrong_is_refused(published, tmp_path, fault):
    classes = published.info.num_classes
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
    refused(lambda: published.read(tmp_path), published.name, tmp_path, "not as published")


def test_files_of_the_right_size_and_wrong_content_are_refused(stand_in, tmp_path):
    mnist = stand_in("mnist")
    for i, (name, content) in enumerate(mnist.files.items()):
        mnist.lay(tmp_path, mnist.files | {name: np.random.default_rng(i).bytes(len(content))})
        refused(lambda: mnist.read(tmp_path), "mnist", tmp_path, "cannot be read")


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps({"neither": "data"}), pickle.dumps([1])])
def test_a_pickle_that_is_none_is_refused(stand_in, tmp_path, monkeypatch, content):
    cifar = stand_in("cifar10")
    cifar.lay(tmp_path, cifar.files | {"cifar-10-batches-py/test_batch": content})
    monkeypatch.setattr(cifar.dataset, "test_list", [["test_batch", md5(content)]])
    refused(lambda: cifar.read(tmp_path), "cifar10", tmp_path, "cannot be read")


def test_a_folder_that_cannot_be_made_is_named(published, tmp_path, network):
    (tmp_path / "file").write_bytes(b"in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(lambda root=root: published.read(root), root)
        refused(lambda root=root: published.read(root, download=True), root, "[Errno ")
    assert not network.asked


def test_a_file_that_may_not_be_read_is_named(stand_in, tmp_path, monkeypatch):
    def forbidden(path, md5):
        raise PermissionError(13, "Permission denied", str(path))

    cifar = stand_in("cifar10")
    cifar.lay(tmp_path, cifar.files)
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", forbidden)
    first = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    refused(lambda: cifar.read(tmp_path), f"Permission denied: '{first}'")


def test_an_archive_that_cannot_be_unpacked_is_named(stand_in, tmp_path):
    cifar = stand_in("cifar10")
    cifar.lay(tmp_path, cifar.archives | {"cifar-10-batches-py": b"a file in the way of the folder"})
    refused(lambda: cifar.read(tmp_path), tmp_path, "Not a directory")
