"""ICC profiles made by hand, and what their colours are in sRGB by the standards' own formulas."""

from __future__ import annotations

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
MATRICES = {  # linear RGB to XYZ at D50, as the profiles of these spaces have it
    "sRGB": ((0.43607, 0.38506, 0.14308), (0.22249, 0.71688, 0.06062), (0.01393, 0.09710, 0.71417)),
    "Adobe": ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)),
    "Display P3": ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407)),
}
PARAMETRIC = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # sRGB's curve, as ICC writes it
ADOBE_GAMMA = 563 / 256
GREY_GAMMA = 1.5


def decoded(levels):
    """Linear light of sRGB levels in [0, 1]."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def srgb(xyz):
    """Levels of 255 of XYZ at D50."""
    linear = np.clip(np.asarray(xyz) @ np.linalg.inv(MATRICES["sRGB"]).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def of_lab(lab):
    """Levels of 255 of L*, a* and b* at D50."""
    light = (lab[..., 0] + 16) / 116
    f = np.stack([light + lab[..., 1] / 500, light, light - lab[..., 2] / 200], -1)
    return srgb(np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50)


def profile(space, pcs, tags):
    """A profile's bytes: its header, a table, the tags."""
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += struct.pack(">4sII", name.encode(), at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"\0" * 4, 0x02400000, b"mntr", space, pcs)
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp").ljust(44, b"\0") + fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def fixed(*numbers):
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def xyz(*numbers):
    return b"XYZ \0\0\0\0" + fixed(*numbers)


def curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def described(name):
    text = name.encode() + b"\0"
    return {"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78, "wtpt": xyz(*D50)}


def of_rgb(name, tone):
    columns = zip(("rXYZ", "gXYZ", "bXYZ"), np.transpose(MATRICES[name]), strict=True)
    tags = {tag: xyz(*column) for tag, column in columns}
    return profile(b"RGB ", b"XYZ ", described(name) | tags | dict.fromkeys(("rTRC", "gTRC", "bTRC"), tone))


def ink_lab():
    """L*, a*, b* of the 16 ways to print inks whole or not at all, of an imaginary press; the last ink fastest."""
    inks = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    paper = 1 - inks[:, 3]
    light = np.clip(100 - inks @ [35, 40, 8, 70], 0, 100)
    return np.stack([light, paper * (inks @ [-30, 60, -5, 0]), paper * (inks @ [-40, -5, 70, 0])], -1).astype(float)


def of_inks():
    lab = ink_lab() * [2.55, 1, 1] + [0, 128, 128]
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += ramp * 4 + np.round(lab).astype(np.uint8).tobytes() + ramp * 3
    return profile(b"CMYK", b"Lab ", described("inks") | {"A2B0": table})


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(*PARAMETRIC)
PROFILES = {
    "none": None,
    "sRGB": of_rgb("sRGB", SRGB_CURVE),
    "Adobe": of_rgb("Adobe", curve(ADOBE_GAMMA)),
    "Display P3": of_rgb("Display P3", SRGB_CURVE),
    "grey": profile(b"GRAY", b"XYZ ", described("grey") | {"kTRC": curve(GREY_GAMMA)}),
    "inks": of_inks(),
    "broken": of_rgb("Adobe", curve(ADOBE_GAMMA))[:200],
}
SPACES = {"sRGB": "RGB", "Adobe": "RGB", "Display P3": "RGB", "grey": "grey", "inks": "CMYK"}


def in_srgb(levels, name):
    """Levels of 255 of a profile's colours, `[…, 3]`, or `[…, 4]` whole inks."""
    if name == "inks":
        return of_lab(ink_lab()[np.round(levels / 255).astype(int) @ [8, 4, 2, 1]])
    levels = levels / 255
    if name == "grey":
        return srgb(levels**GREY_GAMMA * D50)
    linear = levels**ADOBE_GAMMA if name == "Adobe" else decoded(levels)
    return srgb(linear @ np.transpose(MATRICES[name]))
