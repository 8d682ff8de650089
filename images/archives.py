"""The published data sets, which torchvision downloads, checks and unpacks.

    load = published("CIFAR10")
    train, test = load(Path("dataset"), True)      # each (images uint8 (N, 3, 32, 32), labels int64 (N,))

torchvision defines the files, MD5 sums and mirrors of each set, and checks the sum of an archive before unpacking.
"""

import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from images.info import DataError, Split, import_torchvision, one_line

TIMEOUT = 10  # limit for a server's answer, in seconds

CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
FASHION = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))


def published(name: str, padding: int = 0) -> Callable[[Path, bool], tuple[Split, Split]]:
    """Return `DataSet.load` for a class of `torchvision.datasets`; `padding` is the width of a zero padding."""
    return partial(_load, name, padding)


def _load(name, padding, root, download):
    """Both splits, from the files in `root`, else from the archives in `root`, else from the network."""
    datasets = import_torchvision("datasets", name, "digits or imagefolder")
    dataset, check_integrity = getattr(datasets, name), datasets.utils.check_integrity
    folder, address, archives = _archives(dataset, root)
    timeout = socket.getdefaulttimeout()
    try:
        # torchvision unpacks archives only with download=True, which downloads nothing if all archives exist
        download = download or all(check_integrity(folder / file, md5) for file, md5 in archives)
        socket.setdefaulttimeout(TIMEOUT)
        return tuple(_read_split(dataset, split, root, download, padding) for split in ("train", "test"))
    except Exception as error:  # torchvision, pickle, scipy, network and disk may raise any error
        reason = one_line(error).removesuffix(". You can use download=True to download it")
        files = ", ".join(file for file, _ in archives)
        cure = f"remove damaged files there and download {files} from {address}, or use --dataset digits"
        raise DataError(f"{name} is not available in {folder} ({reason}): {cure}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _archives(dataset, root):
    """The folder for the archives of a data set, their URL, and the name and MD5 sum of each archive."""
    if dataset.__name__ == "SVHN":
        url, *train = dataset.split_list["train"]
        return root, url.removesuffix(train[0]), [train, dataset.split_list["test"][1:]]
    if hasattr(dataset, "mirrors"):  # MNIST and Fashion-MNIST
        return root / dataset.__name__ / "raw", dataset.mirrors[0], dataset.resources
    return root, dataset.url.removesuffix(dataset.filename), [(dataset.filename, dataset.tgz_md5)]


def _read_split(dataset, split, root, download, padding):
    which = {"split": split} if dataset.__name__ == "SVHN" else {"train": split == "train"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about the old format of the CIFAR pickles
        data = dataset(root, download=download, **which)
    images = torch.as_tensor(data.data)
    labels = torch.as_tensor(data.labels if dataset.__name__ == "SVHN" else data.targets, dtype=torch.int64)
    if images.ndim == 3:
        images = images.unsqueeze(1)  # (N, H, W) to (N, 1, H, W)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)  # (N, H, W, 3) to (N, 3, H, W)
    return F.pad(images, (padding,) * 4).contiguous(), labels
