"""What both loaders promise, for images in memory and streamed ones: passes, draws, resumed passes and shards."""

from itertools import pairwise

import pytest
import torch

from images.batches import BatchLoader
from images.stream import StreamLoader
from tests.images.checks import same

NUM = 60
NORM = [0] * 3, [1 / 255] * 3  # batches hold the pixel values


@pytest.fixture(params=["in memory", "streamed"])
def loader(request, photographs):
    """A function that returns a loader of the first `count` of 60 images."""

    def loader(count=NUM, seed=3, crop=True, **options):
        options = {"batch_size": 16, "shuffle": True, "flip": crop, "seed": seed} | options
        if request.param == "streamed":
            options |= {"size": 8, "workers": 0, "random_crop": crop}
            return StreamLoader(*(part[:count] for part in photographs), *NORM, **options)
        images = torch.randint(256, (NUM, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return BatchLoader(images[:count], torch.arange(count), *NORM, padding=2 * crop, **options)

    return loader


@pytest.mark.parametrize("batch_size", [1, 16, 60, 100])
def test_a_pass_has_every_image_once_with_its_label(loader, batch_size):
    in_order, shuffled = (loader(batch_size=batch_size, shuffle=shuffle, crop=False) for shuffle in (False, True))
    images, labels = map(torch.cat, zip(*in_order, strict=True))
    assert torch.equal(labels, torch.arange(NUM)) and images.dtype == torch.float32 and images.shape == (NUM, 3, 8, 8)
    sizes = [len(labels) for _, labels in shuffled]
    assert len(shuffled) == len(sizes) and sum(sizes) == NUM and set(sizes[:-1]) <= {batch_size}
    shuffled_images, order = map(torch.cat, zip(*shuffled, strict=True))
    assert torch.equal(order.sort().values, labels) and not torch.equal(order, labels)
    assert torch.equal(shuffled_images, images[order])


@pytest.mark.parametrize("skip", range(5))
def test_a_pass_is_resumed_at_any_batch(loader, skip):
    whole, resumed = loader(), loader(seed=99)
    next(iter(whole))  # a pass that was interrupted
    resumed.load_state_dict(whole.state_dict())
    assert same(list(resumed.batches(skip)), list(whole)[skip:])
    passes = [list(each) for each in (whole, resumed, whole)]
    assert same(*passes[:2]) and not any(same(*pair) for pair in pairwise(passes[1:]))


def test_alternating_flips_flip_every_image_in_every_second_pass(loader):
    plain = torch.cat([images for images, _ in loader(shuffle=False, crop=False)])
    alternating, flipped = loader(crop=False, flip=True, alternating=True), []
    for _ in range(4):
        images, labels = map(torch.cat, zip(*alternating, strict=True))
        images = images[labels.argsort()]
        flipped.append((images != plain).flatten(1).any(1))
        assert torch.equal(images[flipped[-1]], plain.flip(3)[flipped[-1]])
    assert torch.equal(flipped[0], ~flipped[1]) and 15 < flipped[0].sum() < 45
    assert torch.equal(flipped[0], flipped[2]) and torch.equal(flipped[1], flipped[3])


def test_the_global_generator_is_neither_read_nor_changed(loader):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = list(loader())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert same(first, list(loader()))


@pytest.mark.parametrize("size, batch_size, images", [(2, 5, 43), (3, 4, 31), (4, 2, 17), (4, 50, 17), (4, 1, 3)])
def test_the_shards_of_a_batch_are_the_batch(loader, size, batch_size, images):
    def shards(**options):
        return [list(loader(images, batch_size=batch_size, shard=(rank, size), **options)) for rank in range(size)]

    whole = list(loader(images, batch_size=size * batch_size))
    joined = [list(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shards(), strict=True)]
    assert images - sum(len(labels) for _, labels in joined) < size  # the rest, of fewer images than processes
    assert same(joined, whole[: len(joined)])
    tested = [labels for shard in shards(shuffle=False, crop=False) for _, labels in shard]
    assert sorted(torch.cat(tested).tolist()) == list(range(images)) and all(map(len, tested))
