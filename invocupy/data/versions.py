"""CIFAR-10 and CIFAR-100: their classes, mean and deviation, files, archives and digests."""

from __future__ import annotations

from typing import NamedTuple

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
# of the 50,000 training images, per channel, in units of 0..1
CIFAR10_MEAN = (0.49140, 0.48216, 0.44653)
CIFAR10_STD = (0.24703, 0.24349, 0.26159)

_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_COARSE = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture insects large_carnivores "
    "large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores "
    "medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 "
    "vehicles_2"
)
CIFAR100_CLASSES, CIFAR100_COARSE_CLASSES = tuple(_FINE.split()), tuple(_COARSE.split())
CIFAR100_MEAN = (0.50707, 0.48655, 0.44092)
CIFAR100_STD = (0.26733, 0.25644, 0.27615)


class Version(NamedTuple):
    """What one of the two sets looks like, and where it is."""

    name: str
    url: str  # of the archive
    size: int  # of the archive in bytes
    sha256: str
    folder: str  # in the archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: tuple[int, int]  # in a file to train on, in one of the test
    classes: tuple[int, ...]  # that each label byte of a record may name
    pickles: tuple[str, ...]  # in folders of the Python version
    spare: int = 2**20  # bytes of the archive beside the files: a page of text, tar's own blocks

    @property
    def archive(self) -> str:
        """The name of the archive."""
        return self.url.rpartition("/")[2]

    @property
    def record(self) -> int:
        """The bytes of a record."""
        return len(self.classes) + 3 * 32 * 32

    def count(self, name: str) -> int:
        """The records of a file."""
        return self.records[name in self.test]

    @property
    def unpacked(self) -> int:
        """What the archive unpacks to at most; what unpacks to more is not this archive."""
        return sum(map(self.count, self.train + self.test)) * self.record + self.spare

    @property
    def way_out(self) -> str:
        """What to do about wrong files."""
        return (
            f"download {self.archive} from {self.url}, or use --dataset shapes10, which needs no "
            "file"
        )


TEN = Version(
    "CIFAR-10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", "cifar-10-batches-bin",
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",),
    (10_000, 10_000), (10,), ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"),
)  # fmt: skip
HUNDRED = Version(
    "CIFAR-100", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", 168_513_733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", "cifar-100-binary",
    ("train.bin",), ("test.bin",), (50_000, 10_000), (20, 100),
    ("cifar-100-python", "cifar-100-python.tar.gz", "meta"),
)  # fmt: skip
