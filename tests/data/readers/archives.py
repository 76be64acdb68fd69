"""Archives with every kind of member, in every order."""

import gzip
import io
import tarfile

import numpy as np
import zstandard

from data.readers.samples import pair

IMAGES = {str(n): b"\x89PNG\r\n\x1a\n" + bytes([n]) * (700 * n) for n in range(5)}
PAIRS = {key: pair(f"caption {key}", image) for key, image in IMAGES.items()}
SAMPLE = [("0.png", IMAGES["0"]), ("0.txt", b"caption 0")]
PACKS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.zst": zstandard.compress}


def regular(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def linked(kind, name, data, ahead=False):
    members = [regular(f".all/{name}", data), special(name, kind, f".all/{name}")]
    return members[::-1] if ahead else members


KINDS = {  # the members that an image stands in
    "regular": lambda name, data: [regular(name, data)],
    "hard link": lambda name, data: linked(tarfile.LNKTYPE, name, data),
    "symbolic link": lambda name, data: linked(tarfile.SYMTYPE, name, data),
    "link ahead": lambda name, data: linked(tarfile.SYMTYPE, name, data, ahead=True),
    "links of links": lambda name, data: [
        special(name, tarfile.SYMTYPE, f".a/{name}"),
        special(f".a/{name}", tarfile.SYMTYPE, f"../.b/{name}"),
        special(f".b/{name}", tarfile.LNKTYPE, f"./.c/{name}"),
        regular(f".c/{name}", data),
    ],
    "another ending": lambda name, data: [regular(name.replace(".png", ".JFIF"), data)],
    "an unknown ending": lambda name, data: [regular(name.replace(".png", ".picture"), data)],
}
ORDERS = {  # of the parts of samples, each its image and its caption
    "sorted": lambda samples: [part for sample in samples for part in sample],
    "captions first": lambda samples: [part for sample in samples for part in reversed(sample)],
    "images, then captions": lambda samples: [*(s[0] for s in samples), *(s[1] for s in samples)],
    "captions, then images": lambda samples: [*(s[1] for s in samples), *(s[0] for s in samples)],
    "mixed": lambda samples: [
        samples[n // 2][n % 2] for n in np.random.default_rng(3).permutation(2 * len(samples)).tolist()
    ],
}


def written(members, format=tarfile.GNU_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as out:
        for info, data in members:
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def archive_of(kind, order, format=tarfile.GNU_FORMAT):
    samples = [
        (KINDS[kind](f"{key}.png", image), [regular(f"{key}.txt", f"caption {key}".encode())])
        for key, image in IMAGES.items()
    ]
    return written([member for part in ORDERS[order](samples) for member in part], format)


def endless(data):
    """An archive without the blocks of zeros at its end."""
    data = data.rstrip(b"\0")
    return data + bytes(-len(data) % 512)


def header(kind, data, name="x"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
