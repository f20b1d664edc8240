"""Replies packed and unpacked: zstd, with a dictionary trained on the first replies.

A reply of a few hundred bytes shrinks to a third with a dictionary. Dictionaries are append-only in the checkpoint;
reading and writing them is the store's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import zstandard

from batchrun.errors import StorageError

LEVEL = 3
DICTIONARY_BYTES = 16_384
# 300 replies train as good a dictionary as 2,000 and take a tenth of the time; long ones teach it nothing more.
SAMPLES = 300
LONGEST_SAMPLE = 32_768
# Room is made for a reply before it is read, so a damaged frame must not claim more than any reply can have.
LARGEST_REPLY = 1 << 30


@contextlib.contextmanager
def _sound() -> Iterator[None]:
    """A dictionary that zstd does not take is damage in the checkpoint: better to stop than to pay for more."""
    try:
        yield
    except zstandard.ZstdError as error:
        raise StorageError("A dictionary in the checkpoint is damaged, and replies cannot be read.") from error


class Packer:
    """Compresses replies with the newest dictionary there is, and collects samples until there is one."""

    def __init__(self, dictionaries: Mapping[int, bytes]) -> None:
        self._samples: list[bytes] = []
        self._dictionary: int | None = None
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        if dictionaries:
            newest = max(dictionaries)
            self.use(newest, dictionaries[newest])

    def use(self, number: int, content: bytes) -> None:
        """Compress with this dictionary from now on."""
        with _sound():
            dictionary = zstandard.ZstdCompressionDict(content)
            dictionary.precompute_compress(level=LEVEL)
            self._compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary)
        self._dictionary = number
        self._samples.clear()

    def pack(self, body: bytes) -> tuple[int | None, bytes]:
        """The dictionary's number (None: none yet) and the compressed frame."""
        if self._dictionary is None and len(self._samples) < SAMPLES and len(body) <= LONGEST_SAMPLE:
            self._samples.append(body)
        return self._dictionary, self._compressor.compress(body)

    def ready_samples(self) -> list[bytes] | None:
        """The samples, once, when there are enough of them."""
        if self._dictionary is not None or len(self._samples) < SAMPLES:
            return None
        samples, self._samples = self._samples, []
        return samples


def train(samples: Sequence[bytes]) -> bytes | None:
    """A dictionary from samples, None when they have nothing in common. Takes about 50 ms: call it in a thread."""
    try:
        return zstandard.train_dictionary(DICTIONARY_BYTES, list(samples), level=LEVEL).as_bytes()
    except zstandard.ZstdError:
        return None


class Unpacker:
    """Decompresses replies, whichever dictionary they were packed with."""

    def __init__(self, dictionaries: Mapping[int, bytes]) -> None:
        self._plain = zstandard.ZstdDecompressor()
        with _sound():
            self._with = {
                number: zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(content))
                for number, content in dictionaries.items()
            }

    def unpack(self, dictionary: int | None, frame: bytes) -> bytes:
        """The reply as it came.

        Raises:
            KeyError: the dictionary is not in the checkpoint.
            zstandard.ZstdError: the frame is damaged.
        """
        if zstandard.frame_content_size(frame) > LARGEST_REPLY:
            raise zstandard.ZstdError("the frame claims to hold more than any reply")
        return (self._plain if dictionary is None else self._with[dictionary]).decompress(frame)
