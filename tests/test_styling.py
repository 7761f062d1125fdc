"""Styling: bands that add up, a picture with another's statistics in every band, and the verb `homeostat style`."""

import math
import sys

import numpy as np
import pytest

from homeostat import cli, pixels
from homeostat.styling import EPS, OPPONENT, Basis, restyled

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install homeostat[pictures]")


def picture(h=64, w=96, seed=0):
    """Blotches with a grain that runs one way, in values 0..1."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.random((3, -(-h // 16), -(-w // 16))), np.ones((16, 16)))[:, :h, :w]
    grain = rng.random((1, h, 1)) if seed % 2 else rng.random((1, 1, w))
    return 0.2 + 0.4 * coarse + 0.2 * grain + 0.05 * rng.random((3, h, w))


# ---------------------------------------------------------------- the basis


@pytest.mark.parametrize("shape", [(3, 64, 96), (3, 33, 47), (3, 5, 200), (3, 1, 2)])
@pytest.mark.parametrize("basis", [Basis(), Basis(3, 1), Basis(2, 7), Basis(0)], ids=str)
def test_the_bands_of_a_picture_add_up_to_it(shape, basis):
    x = np.random.default_rng(0).random(shape)
    found = list(basis.bands(x))
    assert len(found) == int(str(basis).split()[0])
    np.testing.assert_allclose(sum(found), x, rtol=0, atol=1e-14)


def test_colours_are_turned_and_nothing_else():
    np.testing.assert_allclose(OPPONENT @ OPPONENT.T, np.eye(3), atol=1e-15)


def test_a_wave_is_in_the_band_of_its_octave_and_direction():
    v, u = np.mgrid[0:64, 0:64]
    for octave in range(4):
        for direction, wave in ((0, u), (2, v)):
            x = np.sin(2 * np.pi * wave * 2.0 ** -(octave + 2))[None]
            energy = [float((band**2).sum()) for band in Basis(5, 4).bands(x)]
            assert int(np.argmax(energy)) == 4 * (octave + 1) + direction


# ---------------------------------------------------------------- the style


def test_every_band_and_channel_takes_the_mean_and_spread_of_the_styles():
    x, s = picture(64, 96, 0), picture(80, 80, 1)
    basis, want = Basis(3, 4), 0.0
    for mine, theirs in zip(*(basis.bands(np.einsum("dc,chw->dhw", OPPONENT, z)) for z in (x, s)), strict=True):
        ratio = np.sqrt((theirs.var((1, 2), keepdims=True) + EPS) / (mine.var((1, 2), keepdims=True) + EPS))
        band = (mine - mine.mean((1, 2), keepdims=True)) * ratio + theirs.mean((1, 2), keepdims=True)
        assert np.abs(band.std((1, 2)) - theirs.std((1, 2))).max() < 1 / 255  # EPS keeps them apart
        want = want + np.einsum("dc,dhw->chw", OPPONENT, band)  # the inverse of a turn is its transpose
    np.testing.assert_allclose(restyled(x, s, basis=basis), want, rtol=0, atol=1e-13)


def test_in_its_own_style_or_at_strength_0_a_picture_is_what_it_was():
    x, s = picture(50, 70, 0), picture(64, 64, 1)
    np.testing.assert_allclose(restyled(x, x), x, rtol=0, atol=1e-14)
    assert np.array_equal(restyled(x, s, 0.0), x)


def test_strength_is_the_share_of_the_way():
    x, s = picture(50, 70, 0), picture(64, 64, 1)
    np.testing.assert_allclose(restyled(x, s, 0.3), 0.7 * x + 0.3 * restyled(x, s), rtol=0, atol=1e-14)


def test_contrast_and_brightness_of_the_content_do_not_matter():
    x, s = picture(64, 64, 0), picture(64, 64, 1)
    np.testing.assert_allclose(restyled(1e3 * x + 7, s), restyled(1e3 * x, s), rtol=0, atol=1e-9)
    np.testing.assert_allclose(restyled(2e3 * x, s), restyled(1e3 * x, s), rtol=0, atol=1e-6)


def test_a_flat_picture_takes_the_colour_and_stays_flat():
    s = picture(64, 64, 1)
    y = restyled(np.full((3, 40, 40), 0.5), s)
    np.testing.assert_allclose(y, np.broadcast_to(s.mean((1, 2))[:, None, None], y.shape), atol=1e-2)
    assert y.std((1, 2)).max() < 1e-10


@pytest.mark.parametrize("wrong", [{"strength": 1.5}, {"strength": math.nan}, {"strength": -0.1}], ids=str)
def test_a_strength_is_a_share(wrong):
    with pytest.raises(ValueError, match="is a share of the way to the style, from 0 to 1"):
        restyled(picture(), picture(), **wrong)


# ---------------------------------------------------------------- files


def saved(path, x, mode="RGB", **how):
    PIL.fromarray(np.rint(np.moveaxis(x, 0, 2) * 255).astype(np.uint8)).convert(mode).save(path, **how)
    return path


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tiff", "x.bmp"])
def test_what_is_read_is_written_again_value_for_value(tmp_path, name):
    path = saved(tmp_path / "in.png", picture())
    kept = pixels.read(path)
    assert pixels.write(tmp_path / name, kept) == 0
    again = pixels.read(tmp_path / name)
    largest = np.abs(again.colours - kept.colours).max()
    assert largest == 0 if name != "x.webp" else largest < 0.3  # webp is lossy


def test_opacity_profile_and_orientation_are_kept(tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    PIL.fromarray(whole).save(tmp_path / "in.png", icc_profile=b"a profile")
    pixels.write(tmp_path / "out.png", pixels.read(tmp_path / "in.png"))
    with PIL.open(tmp_path / "out.png") as again:
        assert np.array_equal(np.asarray(again), whole)
        assert again.info["icc_profile"] == b"a profile"
    exif = PIL.Exif()
    exif[0x0112] = 6  # lies on its side
    saved(tmp_path / "turned.jpg", picture(32, 48), exif=exif)
    assert pixels.read(tmp_path / "turned.jpg").size == "32 x 48"


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1"])
def test_pictures_of_other_modes_are_read_as_colours(tmp_path, mode):
    path = saved(tmp_path / "x.tiff", picture(), mode)
    assert pixels.read(path).colours.shape == (3, 64, 96)


def test_values_beyond_black_and_white_are_cut_and_counted(tmp_path):
    x = np.full((3, 4, 4), 0.5)
    x[0, 0] = 1.2, -0.1, 1.0 + 1e-9, -1e-9
    assert pixels.write(tmp_path / "x.png", pixels.Picture(x)) == 2 / 48
    assert pixels.read(tmp_path / "x.png").colours[0, 0].tolist() == [1, 0, 1, 0]


# ---------------------------------------------------------------- the verb


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command_line_restyles_and_says_what_it_did(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, style = saved(tmp_path / "a.png", picture(64, 96, 0)), saved(tmp_path / "b.png", picture(80, 70, 1))
    assert cli.main(["style", str(content), str(style), "--scales", "3"]) == 0
    said = capsys.readouterr().out
    assert "96 x 64" in said
    assert "70 x 80" in said
    assert "13 bands (3 scales in 4 orientations, and what is coarser)" in said
    assert "wrote a-in-b.png; " in said
    want = restyled(pixels.read(content).colours, pixels.read(style).colours, basis=Basis(3))
    got = pixels.read(tmp_path / "a-in-b.png").colours
    assert np.abs(got - want.clip(0, 1)).max() <= 0.5 / 255 + 1e-12
    assert names(tmp_path) == ["a-in-b.png", "a.png", "b.png"]


@pytest.mark.parametrize("how", [["b.png", "--strength", "0"], ["a.png"]], ids=["strength 0", "its own style"])
def test_what_changes_nothing_gives_the_same_file_of_pixels(tmp_path, how, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.png", picture(64, 96, 0))
    saved(tmp_path / "b.png", picture(80, 70, 1))
    assert cli.main(["style", "a.png", *how, "-o", "out.png"]) == 0
    assert np.array_equal(pixels.read(tmp_path / "a.png").colours, pixels.read(tmp_path / "out.png").colours)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["absent.png", "a.png"], "absent.png cannot be read as a picture: No such file or directory."),
        (["a.png", "text.png"], "text.png cannot be read as a picture: cannot identify image file"),
        (["half.png", "a.png"], "half.png cannot be read as a picture: image file is truncated"),
        (["deep.png", "a.png"], "deep.png has more than 8 bits a channel (mode I;16)"),
        ([".", "a.png"], ". cannot be read as a picture: Is a directory."),
        (["a.png", "a.png", "-o", "out.xyz"], "out.xyz: .xyz names no format of pictures to write; .png does."),
        (["a.png", "a.png", "-o", "out"], "out: no ending names no format"),
        (["a.png", "a.png", "-o", "absent/out.png"], "absent/out.png cannot be written: No such file or directory."),
        (["a.png", "a.png", "--strength", "2"], "strength=2.0 is a share"),
        (["a.png", "a.png", "--orientations", "0"], "orientations=0: give a whole number of at least 1."),
        (["dot.png", "a.png"], '"c h w -> c" leaves one value in each group'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_without_a_traceback(tmp_path, capsys, monkeypatch, asked, said):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.png", picture())
    saved(tmp_path / "dot.png", picture(1, 1))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    PIL.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    before = names(tmp_path)
    assert cli.main(["style", *asked]) == 2
    assert capsys.readouterr().err.startswith(f"homeostat style: {said}")
    assert names(tmp_path) == before


def test_without_pillow_one_is_told_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cli.main(["style", str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 2
    assert "pip install 'homeostat[pictures]'" in capsys.readouterr().err
