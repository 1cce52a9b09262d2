"""Picture files from phones, microscopes and designers: what a model sees of each is what a person would see."""

import json
import os
import socket

import numpy as np
import pytest
from PIL import Image, features

from auditkit.data.folder import ImageFolder
from auditkit.data.load import load_images
from auditkit.data.pictures import SUFFIXES, read_picture, upright
from auditkit.errors import AuditError
from auditkit.planning.check import _picture
from auditkit.text import slug


def picture(folder, name, image, **options):
    image.save(folder / name, **options)
    return folder / name


def test_sixteen_bits_are_scaled_by_the_pictures_own_range_and_that_is_said(tmp_path, capsys):
    deep = np.linspace(300, 4000, 64).reshape(8, 8).astype(np.uint16)  # twelve bits of a camera, say
    for name in ("a.tif", "b.png"):
        picture(tmp_path, name, Image.fromarray(deep))
    source = ImageFolder(tmp_path)
    seen = np.asarray(source.picture("a.tif").image)[..., 0].astype(int).ravel()
    assert seen[0] == 0 and seen[-1] == 255 and (np.diff(seen) >= 0).all() and len(set(seen)) > 60
    source.picture("b.png").image  # noqa: B018
    said = capsys.readouterr().out
    assert "a.tif has more than 8 bits, so its values from 300 to 4000 are scaled to 0 to 255" in said
    assert said.count("scaled") == 1 and source.scaled == {"a.tif", "b.png"}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 100, 255], np.int32, [0, 100, 255]),  # eight bits in a wide container stay as they are
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
        ([7, 7, 7], np.int32, [7, 7, 7]),
        ([5000, 5000, 5000], np.int32, [0, 0, 0]),
    ],
)
def test_other_depths(values, kind, expected):
    seen = np.asarray(upright(Image.fromarray(np.array([values], dtype=kind))))[0, :, 0]
    assert np.abs(seen.astype(int) - expected).max() <= 1


def test_what_is_transparent_is_laid_on_white(tmp_path):
    logo = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    logo.putpixel((1, 1), (0, 0, 0, 255))
    picture(tmp_path, "logo.png", logo)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    picture(tmp_path, "palette.png", palette, transparency=0)
    source = ImageFolder(tmp_path)
    seen = source.picture("logo.png").image
    assert seen.getpixel((0, 0)) == (255, 255, 255) and seen.getpixel((1, 1)) == (0, 0, 0)
    assert source.picture("palette.png").image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".webp", ".bmp", ".gif", ".tif"])
def test_formats_are_read(tmp_path, suffix):
    codec = {".avif": "avif", ".jp2": "jpg_2000"}.get(suffix)
    if codec and not features.check(codec):
        pytest.skip(f"this Pillow was built without {codec}")
    picture(tmp_path, f"a{suffix}", Image.new("RGB", (16, 16), (200, 30, 30)))
    red, green, _ = ImageFolder(tmp_path).picture(f"a{suffix}").image.getpixel((8, 8))
    assert abs(red - 200) < 8 and abs(green - 30) < 8


def test_heic_is_read_by_its_package_or_named_with_the_cure(tmp_path, capsys):
    try:
        import pillow_heif
    except ImportError:
        (tmp_path / "a.heic").write_bytes(b"\0" * 64)
        picture(tmp_path, "b.png", Image.new("RGB", (8, 8)))
        with pytest.raises(AuditError, match=r'a.heic needs a package to be read: pip install "auditkit\[heic\]"'):
            ImageFolder(tmp_path).picture("a.heic").image  # noqa: B018
        return
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (200, 30, 30))).save(tmp_path / "a.heic")
    assert abs(ImageFolder(tmp_path).picture("a.heic").image.getpixel((30, 30))[0] - 200) < 8


def test_what_is_not_read_is_counted_and_named(tmp_path, capsys):
    picture(tmp_path, "a.png", Image.new("RGB", (8, 8)))
    for name in ("scan.dcm", "raw.nef", "drawing.svg", "film.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    ImageFolder(tmp_path)
    assert "4 files (drawing.svg, film.mp4, raw.nef, …) of kinds that are not read here" in capsys.readouterr().out
    (tmp_path / "a.png").unlink()
    with pytest.raises(AuditError, match=r"no image in .*; 4 images \(drawing.svg, .*of another kind"):
        ImageFolder(tmp_path)


def test_linked_folders_are_named_and_followed_only_where_told(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    picture(tmp_path / "here", "a.png", Image.new("RGB", (8, 8)))
    picture(tmp_path / "there", "b.png", Image.new("RGB", (8, 8)))
    os.symlink(tmp_path / "there", tmp_path / "here" / "linked")
    os.symlink(tmp_path / "here", tmp_path / "there" / "circle")
    assert set(ImageFolder(tmp_path / "here")._paths) == {"a.png"}
    assert "1 linked folder (linked) not looked into" in capsys.readouterr().out
    assert {"a.png", "linked:b.png"} <= set(load_images(f"{tmp_path / 'here'}?links=yes")._paths)
    with pytest.raises(AuditError, match="no option link; there is links"):
        load_images(f"{tmp_path / 'here'}?link=yes")


def test_links_to_pictures_elsewhere_are_named_and_followed_only_where_told(tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in ((here, "a.png"), (there, "secret.png")):
        folder.mkdir()
        picture(folder, name, Image.new("RGB", (8, 8)))
    (here / "inside.png").symlink_to("a.png")
    (here / "out.png").symlink_to(there / "secret.png")
    (here / "out.json").symlink_to(there / "questions.json")
    (there / "questions.json").write_text("[]")
    assert set(ImageFolder(here)._paths) == {"a.png", "inside.png"}
    said = capsys.readouterr().out
    assert "2 links to files elsewhere (out.json, out.png) not followed; write" in said and "?links=yes" in said
    assert set(load_images(f"{here}?links=yes")._paths) == {"a.png", "inside.png", "out.png"}
    assert "2 links to files elsewhere (out.json, out.png) followed, as ?links=yes says" in capsys.readouterr().out


@pytest.mark.parametrize("options", ["", "?links=yes"])
def test_what_is_no_file_is_named_and_never_opened(tmp_path, capsys, monkeypatch, options):
    """A pipe would be waited for for ever."""
    picture(tmp_path, "a.png", Image.new("RGB", (8, 8)))
    for name in ("pipe.png", "questions.jsonl", "metadata.csv"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "nothing.png").symlink_to("nowhere.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket.png")
        assert set(load_images(f"{tmp_path}{options}")._paths) == {"a.png"}
    said = capsys.readouterr().out
    assert "7 are no files (itself.png, metadata.csv, nothing.png, …) but pipes, devices or links to nothing" in said
    with pytest.raises(AuditError, match="pipe.png cannot be read as an image .it is no file"):
        read_picture(tmp_path / "pipe.png", "pipe.png")


def test_pictures_whose_names_differ_in_a_sign_are_two_pictures(tmp_path):
    names = ["a/b.png", "a:b.png", "a%3Ab.png", "a%253Ab.png", "a%b.png", "a%25b.png", "a b.png", "a-b.png"]
    (tmp_path / "a").mkdir()
    for i, name in enumerate(names):
        picture(tmp_path, name, Image.new("RGB", (8, 8), (i, 0, 0)))
    source = ImageFolder(tmp_path)
    assert len(source._paths) == len(names) == len({slug(key) for key in source._paths})
    colours = {source.picture(key).image.getpixel((0, 0))[0] for key in source._paths}
    assert colours == set(range(len(names)))
    assert source._paths["a:b.png"] == tmp_path / "a" / "b.png", "as before"
    assert all("/" not in key for key in source._paths)
    rows = [{"image": name, "question": "which?", "answer": str(i)} for i, name in enumerate(names)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ImageFolder(tmp_path)
    for key in source._paths:
        assert source.truth(key, "which?") == str(source.picture(key).image.getpixel((0, 0))[0])


def test_a_picture_like_a_line_is_skipped_and_named(tmp_path, capsys):
    picture(tmp_path, "panorama.png", Image.new("RGB", (12_000, 40)))
    for i in range(60):
        picture(tmp_path, f"{i}.png", Image.new("RGB", (8, 8)))
    source = ImageFolder(tmp_path)
    found = [key for split in ("train", "audit", "baseline", "test") for key in source.pictures(split, 99, 0)]
    assert len(found) == 60 and source.unreadable == ["panorama.png"]
    assert "panorama.png is 12000 x 40 pixels, more than 100 times as long as wide; skipped." in capsys.readouterr().out


def test_a_picture_of_three_pixels_is_skipped_for_a_processor_takes_its_rows_for_colours(tmp_path, capsys):
    picture(tmp_path, "tracker.gif", Image.new("RGB", (3, 3)))
    for i in range(60):
        picture(tmp_path, f"{i}.png", Image.new("RGB", (4, 4), (i, 0, 0)))
    source = ImageFolder(tmp_path)
    found = [p for split in ("train", "audit", "baseline", "test") for p in source.pictures(split, 100, 0)]
    assert len(found) == 60 and source.unreadable == ["tracker.gif"]
    assert "tracker.gif is 3 x 3 pixels, less than 4 wide or high; skipped." in capsys.readouterr().out


def test_the_picture_of_a_check_stands_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path, "turned.jpg", Image.new("RGB", (8, 6)), exif=exif)
    assert _picture(path).size == (6, 8)
    with pytest.raises(AuditError, match="--image .*nothing.png: not a picture that can be read"):
        _picture(tmp_path / "nothing.png")


def test_an_ordinary_picture_is_untouched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = picture(tmp_path, "a.png", Image.fromarray(pixels))
    assert (np.asarray(read_picture(path, "a")) == pixels).all() and ".png" in SUFFIXES
