import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import data
from jaxunlearn.data import forget_sets


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", 1200)


@given(st.integers(2, 60), st.data(), st.integers(0, 5))
def test_random(n, draw, seed):
    size = draw.draw(st.integers(1, n - 1))
    chosen = forget_sets.random(n, size, seed)
    assert len(chosen) == size == len(set(chosen.tolist()))
    np.testing.assert_array_equal(chosen, np.sort(chosen))
    assert 0 <= chosen[0] and chosen[-1] < n
    np.testing.assert_array_equal(chosen, forget_sets.random(n, size, seed))


def test_class_restricted(digits):
    chosen = forget_sets.class_restricted(digits.y_train, 3, 20)
    assert set(digits.y_train[chosen]) == {3} and len(chosen) == 20
    whole = forget_sets.class_restricted(digits.y_train, 3, int((digits.y_train == 3).sum()))
    np.testing.assert_array_equal(whole, np.flatnonzero(digits.y_train == 3))


def test_cluster_is_the_neighbourhood_of_the_most_outlying_example(digits):
    x, y = digits.x_train, digits.y_train
    chosen = forget_sets.cluster(x, y, 8, 30)
    members = np.flatnonzero(y == 8)
    flat = x.reshape(len(x), -1).astype(float)
    center = flat[members].mean(0)
    anchor = max(members, key=lambda i: np.linalg.norm(flat[i] - center))
    near = sorted(members, key=lambda i: np.linalg.norm(flat[i] - flat[anchor]))[:30]
    assert set(chosen) == set(near) and anchor in chosen
    # It is tighter than as many random members of the class.
    spread = lambda rows: np.var(flat[rows], axis=0).sum()  # noqa: E731
    assert spread(chosen) < spread(forget_sets.class_restricted(y, 8, 30))


def test_principal_component_takes_the_ends(digits):
    flat = digits.x_train.reshape(1200, -1).astype(float)
    centred = flat - flat.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -2]
    axis *= np.sign(axis[np.argmax(np.abs(axis))])
    score = centred @ axis
    top = forget_sets.principal_component(digits.x_train, 40, component=1)
    assert score[top].min() >= np.sort(score)[-40] - 1e-9
    ends = forget_sets.principal_component(digits.x_train, 5, component=1, both_ends=True)
    assert set(ends) == set(np.argsort(-score)[:3]) | set(np.argsort(-score)[-2:])
    with pytest.raises(ValueError, match="there are 64"):
        forget_sets.principal_component(digits.x_train, 5, component=64)


def test_a_byte_order_mark_begins_a_text_file(tmp_path):
    file = tmp_path / "forget.txt"
    file.write_text("3, 1\n", encoding="utf-8-sig")
    np.testing.assert_array_equal(forget_sets.from_file(file, 10), [1, 3])


def test_from_file(tmp_path):
    text, binary = tmp_path / "a.txt", tmp_path / "a.npy"
    text.write_text("5, 3\n9 1\n")
    np.save(binary, np.array([5, 3, 9, 1], np.int32))
    for path in (text, binary):
        np.testing.assert_array_equal(forget_sets.from_file(path, 10), [1, 3, 5, 9])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2 10", "index 10 is out of range; allowed are 0 to 9"),
        ("-1 2", "index -1 is out of range"),
        ("4 2 4", "index 4 appears more than once"),
        ("1 two", "does not hold integers"),
        ("", "the forget set is empty"),
        (" ".join(map(str, range(10))), "1 to 9 may go"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "indices.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        forget_sets.from_file(path, 10)


def test_bad_binary_files(tmp_path):
    path = tmp_path / "indices.npy"
    np.save(path, np.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"int64\[1, 2\]"):
        forget_sets.from_file(path, 10)
    np.save(path, np.array([1.5]))
    with pytest.raises(ValueError, match="float64"):
        forget_sets.from_file(path, 10)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="does not hold integers"):
        forget_sets.from_file(path, 10)
    with pytest.raises(FileNotFoundError, match="no such file"):
        forget_sets.from_file(tmp_path / "none", 10)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.eye(10, dtype=bool)[3], "forget is a mask"),
        ([True, False], "forget is a mask"),
        ([1.0, 2.0], "float64"),
        ([[1, 2]], r"int64\[1, 2\]"),
        (3, "a list of integers"),
        (["1"], "a list of integers"),
        ([-1], "out of range"),
    ],
)
def test_what_is_no_list_of_rows(indices, message):
    with pytest.raises(ValueError, match=message):
        forget_sets.check(indices, 10)


def test_sizes_and_classes_that_do_not_exist(digits):
    y = digits.y_train
    with pytest.raises(ValueError, match="class 3 has 1.. training examples"):
        forget_sets.class_restricted(y, 3, 500)
    with pytest.raises(ValueError, match="forget_class is 11; the classes are"):
        forget_sets.cluster(digits.x_train, y, 11, 5)
    for size in (0, 1200):
        with pytest.raises(ValueError, match=f"forget_size is {size}"):
            forget_sets.random(1200, size)


def test_uint8_images_give_the_sets_of_their_floats():
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 3, 1), dtype=np.uint8)
    y = np.arange(60) % 2
    np.testing.assert_array_equal(
        forget_sets.cluster(x, y, 1, 7), forget_sets.cluster(x / 255, y, 1, 7)
    )
    for images in (x, x[:8]):  # more examples than pixels, and fewer
        np.testing.assert_array_equal(
            forget_sets.principal_component(images, 3, 1, both_ends=True),
            forget_sets.principal_component(images / 255, 3, 1, both_ends=True),
        )


@pytest.mark.parametrize("bad", [3.0, True, "3", None, np.float32(2), [2]])
def test_sizes_and_classes_are_whole_numbers(bad):
    x, y = np.arange(40.0).reshape(10, 4) ** 2, np.arange(10) % 3
    for draw, name in (
        (lambda: forget_sets.random(10, bad), "forget_size"),
        (lambda: forget_sets.random(bad, 1), "n"),
        (lambda: forget_sets.class_restricted(y, 1, bad), "forget_size"),
        (lambda: forget_sets.class_restricted(y, bad, 1), "forget_class"),
        (lambda: forget_sets.cluster(x, y, 1, bad), "forget_size"),
        (lambda: forget_sets.principal_component(x, bad), "forget_size"),
        (lambda: forget_sets.principal_component(x, 2, bad), "component"),
    ):
        with pytest.raises(ValueError, match=f"^{name} is .*a whole number is needed"):
            draw()
    for n in (5, 20):
        with pytest.raises(ValueError, match=f"features are {n}, but there are 10 labels"):
            forget_sets.cluster(np.zeros((n, 4)), y, 1, 2)
