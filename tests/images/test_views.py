"""Views: random transforms of an image that never change and equal those of Keras."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from pipeline.errors import UsageError
from pipeline.images.decode import decode
from pipeline.images.views import (
    POLICIES,
    VERSION,
    Augmentation,
    Transform,
    choose_augmentation,
    draw_transform,
    draw_view,
    transform_pixels,
)

BOOK = POLICIES["book"]
DIGEST = hashlib.sha256(b"an image").digest()


def draw(size: int) -> np.ndarray:
    """A picture by arithmetic alone, the same under every NumPy: (size, size, 3) uint8."""
    rows, columns, channels = np.indices((size, size, 3))
    return ((rows * 7 + columns * columns * 3 + channels * rows * 5) % 256).astype(np.uint8)


def view_of(
    pixels: np.ndarray, view: int, *, augmentation: Augmentation = BOOK, digest: bytes = DIGEST
) -> np.ndarray:
    return draw_view(pixels, augmentation=augmentation, image_digest=digest, view=view)


def random_transform(rng: np.random.Generator) -> Transform:
    """Draw any geometry, far beyond the policies."""
    return Transform(
        rotation=rng.uniform(-180, 180),
        width_shift=rng.uniform(-0.9, 0.9),
        height_shift=rng.uniform(-0.9, 0.9),
        shear=rng.uniform(-45, 45),
        width_zoom=rng.uniform(0.1, 1.9),
        height_zoom=rng.uniform(0.1, 1.9),
        flip=bool(rng.integers(2)),
    )


def test_view_0_is_the_image_itself() -> None:
    pixels = draw(16)
    assert view_of(pixels, 0) is pixels


def test_view_is_determined_by_seed_digest_and_number() -> None:
    pixels = draw(20)
    first = view_of(pixels, 1)
    np.testing.assert_array_equal(view_of(pixels.copy(), 1), first)
    others = [
        view_of(pixels, 2),
        view_of(pixels, 1, augmentation=replace(BOOK, seed=1)),
        view_of(pixels, 1, digest=hashlib.sha256(b"another").digest()),
    ]
    assert len({view.tobytes() for view in [pixels, first, *others]}) == 5


def test_views_are_the_same_in_any_order_and_in_many_threads() -> None:
    pixels = draw(90)
    alone = [view_of(pixels, view).tobytes() for view in range(8)]
    with ThreadPoolExecutor(8) as pool:
        views = pool.map(lambda view: view_of(pixels, view).tobytes(), reversed(range(8)))
    assert list(views)[::-1] == alone
    np.testing.assert_array_equal(pixels, draw(90))  # untouched


PINNED = {
    "light": "fd7cc40e7f4405746a2e44e16ba88b038d39d435eef8781fbcd59ec0327eca30",
    "book": "a450ad5a424829cd5eb5c4fa3815b35656b2d3065df4341bb6fdbdbfcdc23975",
    "strong": "1aeba20b85c0bb1e7c1055d97b35d7438a3286fb660bda7a9237fb447c86dd48",
}


@pytest.mark.parametrize("policy", POLICIES)
def test_views_of_this_version_never_change(policy: str) -> None:
    """If this fails, cached views would change: increase VERSION, then pin the new digests."""
    digest = hashlib.sha256()
    for size in (33, 150):
        for view in range(1, 9):
            digest.update(view_of(draw(size), view, augmentation=POLICIES[policy]).tobytes())
    assert (VERSION, digest.hexdigest()) == (1, PINNED[policy])


@pytest.mark.parametrize("size", [2, 7, 31, 90])  # 90: in two strips
def test_geometry_is_that_of_keras_matrices_resampled_by_scipy(size: int) -> None:
    rng = np.random.default_rng(size)
    pixels = draw(size)
    for _ in range(10):
        transform = random_transform(rng)
        expected = resampled_by_scipy(pixels, transform)
        np.testing.assert_array_equal(transform_pixels(pixels, transform), expected)


def resampled_by_scipy(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """The product of one matrix for each step, over (column, row, 1), as Keras multiplies them."""
    turn, slant = np.deg2rad(transform.rotation), np.deg2rad(transform.shear)
    size = len(pixels)
    right, below = transform.width_shift * size, transform.height_shift * size
    rotation = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    shift = [[1, 0, right], [0, 1, below], [0, 0, 1]]
    shear = [[1, -np.sin(slant), 0], [0, np.cos(slant), 0], [0, 0, 1]]
    zoom = np.diag([transform.width_zoom, transform.height_zoom, 1])
    centre = np.array([[1, 0, (size - 1) / 2], [0, 1, (size - 1) / 2], [0, 0, 1]])
    matrix = np.linalg.multi_dot([centre, rotation, shift, shear, zoom, np.linalg.inv(centre)])
    matrix = matrix[[1, 0, 2]][:, [1, 0, 2]]  # rows first, as arrays have them
    planes = [
        ndimage.affine_transform(plane.astype(float), matrix, order=1, mode="nearest")
        for plane in pixels.transpose(2, 0, 1)
    ]
    result = np.rint(np.stack(planes, axis=-1)).astype(np.uint8)
    return result[:, ::-1] if transform.flip else result


@pytest.mark.slow
@pytest.mark.real_data
def test_views_of_photographs_equal_those_of_keras(assets: Path) -> None:
    from pipeline.keras_backend import keras

    generator = keras.src.legacy.preprocessing.image.ImageDataGenerator(fill_mode="nearest")
    files = sorted((assets / "data" / "cats_and_dogs" / "train" / "cats").iterdir())[:10]
    for number, file in enumerate(files):
        pixels = decode(file.read_bytes(), image_size=150)
        for augmentation in (BOOK, replace(POLICIES["strong"], jitter=0)):
            transform = draw_transform(augmentation, DIGEST, 1 + number)
            expected = generator.apply_transform(
                pixels.astype(np.float64),
                {
                    "theta": transform.rotation,
                    "tx": transform.width_shift * 150,
                    "ty": transform.height_shift * 150,
                    "shear": transform.shear,
                    "zx": transform.width_zoom,
                    "zy": transform.height_zoom,
                    "flip_horizontal": transform.flip,
                },
            )
            view = view_of(pixels, 1 + number, augmentation=augmentation)
            np.testing.assert_array_equal(view, np.rint(expected))


@pytest.mark.slow
def test_numbers_are_drawn_from_the_ranges_of_keras() -> None:
    """Means and extremes over many draws, Keras' and ours."""
    from pipeline.keras_backend import keras

    generator = keras.src.legacy.preprocessing.image.ImageDataGenerator(
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
    )
    np.random.seed(0)
    theirs = [generator.get_random_transform((1, 1, 3)) for _ in range(20_000)]
    ours = [draw_transform(BOOK, DIGEST, view) for view in range(20_000)]
    names = {
        "theta": "rotation",
        "tx": "height_shift",
        "ty": "width_shift",
        "shear": "shear",
        "zx": "width_zoom",
        "zy": "height_zoom",
        "flip_horizontal": "flip",
    }
    for their_name, name in names.items():
        expected = np.array([float(one[their_name]) for one in theirs])
        sampled = np.array([float(getattr(one, name)) for one in ours])
        spread = np.ptp(expected)
        for measure in (np.mean, np.min, np.max, np.std):
            assert measure(sampled) == pytest.approx(measure(expected), abs=0.02 * spread), name


def test_numbers_fill_their_ranges_evenly_and_independently() -> None:
    wide = Augmentation(
        rotation=40, width_shift=0.3, height_shift=0.2, shear=10, zoom=0.4, flip=True, jitter=0.5
    )
    sampled = [draw_transform(wide, DIGEST, view) for view in range(1, 2001)]
    spreads = {
        "rotation": (0, 40),
        "width_shift": (0, 0.3),
        "height_shift": (0, 0.2),
        "shear": (0, 10),
        "width_zoom": (1, 0.4),
        "height_zoom": (1, 0.4),
        "brightness": (1, 0.5),
        "contrast": (1, 0.5),
        "saturation": (1, 0.5),
    }
    shares = np.array(
        [
            [(getattr(one, name) - middle) / spread for name, (middle, spread) in spreads.items()]
            + [1.0 if one.flip else -1.0]
            for one in sampled
        ]
    )  # (2000, 10), each from -1 to 1
    assert abs(shares).max() <= 1
    assert abs(shares.mean(axis=0)).max() < 0.1
    quarters = np.array([np.histogram(column, 4, (-1, 1))[0] for column in shares[:, :-1].T])
    assert abs(quarters - 500).max() < 100  # five standard deviations
    assert abs(np.corrcoef(shares.T) - np.eye(10)).max() < 0.1


def test_changing_one_range_does_not_change_the_other_numbers() -> None:
    level = draw_transform(replace(BOOK, rotation=0, flip=False), DIGEST, 3)
    turned = draw_transform(BOOK, DIGEST, 3)
    assert level.rotation == 0
    assert replace(turned, rotation=0, flip=False) == level
    half = draw_transform(replace(BOOK, rotation=20), DIGEST, 3)
    assert half == replace(turned, rotation=turned.rotation / 2)


def test_empty_augmentation_does_not_change_the_image() -> None:
    pixels = draw(31)
    np.testing.assert_array_equal(view_of(pixels, 5, augmentation=Augmentation()), pixels)


def test_flip_mirrors_left_to_right_after_the_geometry() -> None:
    pixels = draw(30)
    np.testing.assert_array_equal(transform_pixels(pixels, Transform(flip=True)), pixels[:, ::-1])
    turned = Transform(rotation=20, width_shift=0.1)
    flipped = transform_pixels(pixels, replace(turned, flip=True))
    np.testing.assert_array_equal(flipped, transform_pixels(pixels, turned)[:, ::-1])


def test_shift_reads_pixels_to_the_right_and_down_and_repeats_the_edge() -> None:
    pixels = draw(10)
    right = transform_pixels(pixels, Transform(width_shift=0.2))
    np.testing.assert_array_equal(right[:, :8], pixels[:, 2:])
    np.testing.assert_array_equal(right[:, 8:], pixels[:, [9, 9]])
    down = transform_pixels(pixels, Transform(height_shift=0.3))
    np.testing.assert_array_equal(down[:7], pixels[3:])
    np.testing.assert_array_equal(down[7:], pixels[[9, 9, 9]])


def test_quarter_turn_is_exact() -> None:
    pixels = draw(24)
    np.testing.assert_array_equal(
        transform_pixels(pixels, Transform(rotation=90)), np.rot90(pixels)
    )


def test_colours_change_as_their_definitions_say() -> None:
    pixels = draw(40)
    values = pixels.astype(float)
    grey = values @ [0.299, 0.587, 0.114]
    expected = {
        "brightness": 0.7 * values,
        "contrast": grey.mean() + 0.7 * (values - grey.mean()),
        "saturation": grey[..., None] + 0.7 * (values - grey[..., None]),
    }
    for name, value in expected.items():
        changed = transform_pixels(pixels, Transform(**{name: 0.7}))  # type: ignore[arg-type]
        assert abs(changed - value).max() < 0.5 + 1e-6
    brighter = transform_pixels(pixels, Transform(brightness=1.5))
    assert abs(brighter - np.minimum(1.5 * values, 255)).max() < 0.5 + 1e-6


def test_one_pixel_has_views() -> None:
    pixels = np.array([[[1, 128, 255]]], np.uint8)
    np.testing.assert_array_equal(view_of(pixels, 1), pixels)


def test_a_policy_may_have_some_of_its_ranges_replaced() -> None:
    book = Augmentation(
        rotation=40, width_shift=0.2, height_shift=0.2, shear=0.2, zoom=0.2, flip=True
    )
    assert choose_augmentation() == choose_augmentation("book") == book
    chosen = choose_augmentation("light", rotation=10, shift=0.3, flip=False, seed=7)
    assert chosen == Augmentation(rotation=10, width_shift=0.3, height_shift=0.3, seed=7)
    with pytest.raises(UsageError, match="--augment is one of light, book, strong; received 'x'"):
        choose_augmentation("x")


@pytest.mark.parametrize(
    ("ranges", "flag"),
    [
        ({"rotation": -1}, "--rotation"),
        ({"rotation": 181}, "--rotation"),
        ({"rotation": float("nan")}, "--rotation"),
        ({"shift": 1}, "--shift"),
        ({"shear": 46}, "--shear"),
        ({"zoom": 1}, "--zoom"),
        ({"zoom": float("inf")}, "--zoom"),
        ({"jitter": -0.1}, "--jitter"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_range_out_of_bounds_names_its_flag(ranges: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag} is a number from 0 to .*; received"):
        choose_augmentation(**ranges)


@pytest.mark.parametrize("policy", POLICIES)
def test_augmentation_survives_json(policy: str) -> None:
    augmentation = replace(POLICIES[policy], seed=9)
    read = Augmentation.from_dict(json.loads(json.dumps(augmentation.to_dict())))
    assert read == augmentation
    assert read.digest == augmentation.digest


def test_every_augmentation_has_its_own_digest() -> None:
    changes: dict[str, Any] = {
        "rotation": 39,
        "width_shift": 0.1,
        "height_shift": 0.1,
        "shear": 0.1,
        "zoom": 0.1,
        "flip": False,
        "jitter": 0.1,
        "seed": 1,
    }
    digests = {BOOK.digest} | {replace(BOOK, **{name: to}).digest for name, to in changes.items()}
    assert len(digests) == 1 + len(changes)
    assert len(BOOK.digest) == 12
    assert replace(BOOK, rotation=40, jitter=-0.0).digest == BOOK.digest  # 40.0, 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": True},
        {"version": 1.0},
        {"rotation": "40"},
        {"rotation": True},
        {"rotation": 181},
        {"rotation": float("nan")},
        {"rotation": 10**400},
        {"rotation": None},
        {"flip": 1},
        {"seed": 1.0},
        {"seed": -1},
        {"seed": 2**32},
        {"colour": 1},
    ],
)
def test_unexpected_value_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Augmentation.from_dict(BOOK.to_dict() | change)


@pytest.mark.parametrize("values", [None, [], "book", {}, {"rotation": 40}])
def test_value_that_is_not_an_augmentation_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="needs the fields"):
        Augmentation.from_dict(values)


def test_augmentation_is_formatted_for_people() -> None:
    text = str(replace(BOOK, seed=3))
    assert text == "rotation 40°, shift 0.2, shear 0.2°, zoom 0.2, flip, seed 3"
    assert (
        str(Augmentation(height_shift=0.1, jitter=0.4))
        == "shift 0 across 0.1 down, jitter 0.4, seed 0"
    )
    assert str(Augmentation()) == "seed 0"
