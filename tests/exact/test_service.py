"""The store on disk: what is deleted is not served, and nothing broken is let through."""

import jax
import numpy as np
import pytest

from jaxunlearn.core.disk import DamagedError
from jaxunlearn.exact import ledger, orders, plan, service
from jaxunlearn.nn.images import vit

CONFIG = vit.Config((4, 4, 1), 2, width=8, n_layers=4, n_heads=2, mlp_width=16, n_classes=2)
RECIPE = plan.StageRecipe(
    rank=2, alpha=2.0, learning_rate=1e-2, epochs=1, batch_size=4, dropout=0.0
)
PLAN = plan.make(2, orders.cyclic(2, 2), 16, recipe=RECIPE, layers_per_slice=2, lane_width=4)
IDS = [f"image-{i}" for i in range(32)]
EXAMPLES = {
    "x": np.random.default_rng(0).normal(size=(32, 4, 4, 1)).astype(np.float32),
    "y": (np.arange(32) % 2).astype(np.int32),
}


@pytest.fixture
def store(tmp_path):
    base = jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])
    made = service.create(tmp_path / "store", PLAN, CONFIG, base, IDS, EXAMPLES, who="test")
    made.train(EXAMPLES)
    return made


def of_place(place):
    return [name for name in IDS if service.place_of(PLAN, name) == place]


def test_a_deletion_is_effective_for_every_reader_and_survives(store):
    other = service.Service(store.folder)
    before = other.predict(EXAMPLES["x"])
    victim, same_slice = of_place(3)[:2]
    (outcome,) = store.delete([victim], who="someone")
    assert (outcome.shard, outcome.slice, outcome.repeated) == (1, 1, False)
    after = other.predict(EXAMPLES["x"])  # no reload: it looks at the ledger
    assert np.abs(after - before).max() > 0
    np.testing.assert_array_equal(service.Service(store.folder).predict(EXAMPLES["x"]), after)
    assert other.status()["stages_left"] == [[2, 2], [1, 0]]
    assert store.delete([victim])[0].repeated
    assert len(store.ledger.entries) == 3  # repeating wrote nothing
    store.delete([same_slice])
    np.testing.assert_array_equal(other.predict(EXAMPLES["x"]), after)
    assert other.ledger.entries[2].who == "someone"


def test_dead_shards_do_not_answer_and_repair_brings_them_back(store):
    reader = service.Service(store.folder)
    gone = [of_place(place)[0] for place in range(4)]
    store.delete(gone[2:])
    assert store.status()["serves"]["depth"] == [2, 0]
    reader.predict(EXAMPLES["x"])
    store.delete(gone)
    with pytest.raises(ValueError, match="no shard is alive"):
        reader.predict(EXAMPLES["x"])
    assert store.status()["needs_retraining"]
    assert store.repair(EXAMPLES) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert reader.status()["stages_left"] == [[2, 2], [2, 2]]
    # As if they had never been there: a store whose examples are without them has the same bits.
    changed = EXAMPLES | {"y": np.where(np.isin(IDS, gone), 1 - EXAMPLES["y"], EXAMPLES["y"])}
    assert reader.verify(changed)["prefix"] == [0, 0, 2]
    store.delete([of_place(0)[1]])  # counts against the new generation
    assert store.repair(EXAMPLES) == [(0, 0), (0, 1)]


def test_a_killed_repair_is_not_mistaken_for_another_one(store):
    """Neither one of fewer orders, nor one before a deletion, though lanes have one number."""
    for place, options in ((1, {"below": 1}), (2, {})):
        store.delete([of_place(place)[0]])

        def stop(level, done, total):
            if level == 2 and done == total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.repair(EXAMPLES, progress=stop, **options)
    store.delete([of_place(2)[1]])
    assert len(store.repair(EXAMPLES)) == 4
    for shard in range(2):
        for order in range(2):
            store.verify(EXAMPLES, (shard, order, 2))
    assert not (store.folder / "work").exists()


def test_one_process_trains_at_a_time(store):
    other = service.Service(store.folder)
    store.delete([of_place(0)[0]])

    def meanwhile(level, done, total):
        with pytest.raises(ValueError, match="another process trains the store"):
            other.repair(EXAMPLES)
        other.delete([of_place(1)[0]])  # which is effective all the same

    store.repair(EXAMPLES, progress=meanwhile)
    # Trained before that deletion was known, which counts against the new generation.
    assert store.status()["stages_left"][0] == [1, 0]


def test_verify_finds_what_was_trained_on_other_data(store, monkeypatch):
    assert store.verify(EXAMPLES)["orders"] == 4
    assert store.verify(EXAMPLES, (1, 1, 1))["prefix"] == [1, 1, 1]
    with pytest.raises(ValueError, match="has 2 stages left"):
        store.verify(EXAMPLES, (0, 0, 3))
    other = EXAMPLES | {"y": 1 - EXAMPLES["y"]}
    with pytest.raises(ValueError, match="'image-0' is not what the store was made with"):
        store.verify(other)
    store.delete([of_place(0)[0]])
    monkeypatch.setattr(service, "remaining", lambda files, *rest: (other, files.places))
    store.repair(EXAMPLES)  # by a program that takes other examples, and those that are gone
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="stage 1 is not what training gives"):
        store.verify(EXAMPLES, (0, 0, 2))


def test_examples_are_known_by_their_ids_and_what_is_deleted_need_not_be_there(store):
    gone = of_place(0)[:3]
    store.delete(gone)
    rows = [i for i in np.random.default_rng(0).permutation(32) if IDS[i] not in gone]
    erased = {name: leaf[rows] for name, leaf in EXAMPLES.items()}
    ids = [IDS[i] for i in rows]
    for rows, names, message in (
        (erased, ids[1:] + ids[:1], "'image-0' is not what the store was made with"),
        (erased, ids[:-1] + ids[:1], "1 that are there twice"),
        (erased, [*ids[:-1], "other"], f"'{ids[-1]}' is missing"),
        (erased, None, "examples have 29 rows of x; there are 32 ids"),
    ):
        with pytest.raises(ValueError, match=message):
            store.repair(rows, names)
    assert store.repair(erased, ids) == [(0, 0), (0, 1)]
    store.verify(erased, (0, 1, 2), ids=ids)
    assert store.verify(EXAMPLES, (0, 0, 2))["prefix"] == [0, 0, 2]


def test_any_changed_byte_is_found_and_named(store):
    store.delete([of_place(0)[0]])
    names = ("ledger.jsonl", "plan.json", "examples.json")
    folders = ("orders", "base")
    files = [store.folder / name for name in names]
    files += [file for name in folders for file in (store.folder / name).iterdir()]
    for file in files:
        whole = file.read_bytes()
        for at in np.linspace(0, len(whole) - 1, 12).astype(int):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(DamagedError, match=file.name):
                service.Service(store.folder).verify()
        file.write_bytes(whole)
    service.Service(store.folder).verify()


def test_what_was_cut_off_is_known_by_a_head_kept_elsewhere(store):
    store.delete([of_place(0)[0]])
    head, file = store.status()["head"], store.folder / "ledger.jsonl"
    assert store.verify(head=head)["entries"] == 3
    *whole, _ = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole))
    with pytest.raises(DamagedError, match="no entry with the checksum"):
        service.Service(store.folder).verify(head=head)


def test_a_torn_line_was_never_acknowledged(store):
    file = store.folder / "ledger.jsonl"
    whole = file.read_bytes()
    store.delete([of_place(0)[0]])
    line = file.read_bytes()[len(whole) :]
    for cut in (1, len(line) // 2, len(line) - 2):
        file.write_bytes(whole + line[:cut])
        opened = service.Service(store.folder)
        assert opened.status()["deleted"] == 0
        opened.delete([of_place(1)[0]])
        assert service.Service(store.folder).status()["deleted"] == 1
    file.write_bytes(whole)
    with pytest.raises(DamagedError, match="it ends at byte"):
        store.refresh()


def test_a_full_disk_deletes_nothing(store, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    before = (store.folder / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(ledger.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.delete([of_place(0)[0]])
    monkeypatch.undo()
    assert (store.folder / "ledger.jsonl").read_bytes() == before
    assert service.Service(store.folder).status()["deleted"] == 0
    assert not store.delete([of_place(0)[0]])[0].repeated


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["image-99"], "id 'image-99' is unknown"),
        (["image-1", "nothing"], "id 'nothing' is unknown"),
        ([" image-1"], "printable text without blanks"),
        ([7], "id is 7"),
        ([], "ids is empty"),
        ("image-1", r"several are needed, e.g. \['image-1'\]"),
        ([["image-1"]], r"id is \['image-1'\]"),
    ],
)
def test_bad_ids_delete_nothing(store, ids, message):
    with pytest.raises(ValueError, match=message):
        store.delete(ids)
    assert store.status()["deleted"] == 0


def test_every_request_has_its_answer_in_order(store):
    first, second = of_place(0)[:2]
    outcomes = store.delete([first, second, first])
    assert [o.example for o in outcomes] == [first, second, first]
    assert [o.repeated for o in outcomes] == [False, False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.predict(EXAMPLES["x"].astype(np.uint8)), "x is uint8"),
        (lambda s: s.predict(EXAMPLES["x"][:0]), "x has 0 rows"),
        (lambda s: s.predict(EXAMPLES["x"], batch=0), "batch is 0"),
        (lambda s: s.predict(np.full_like(EXAMPLES["x"], np.nan)), "holds NaN"),
        (lambda s: s.predict(EXAMPLES["x"], y=EXAMPLES["y"]), "the rest {'y': 32}"),
        (lambda s: s.repair(EXAMPLES | {"y": EXAMPLES["y"].astype(int)}), "y is int64"),
        (lambda s: s.repair(EXAMPLES, below=3), "below is 3; 1 to 2"),
        (lambda s: s.repair({"y": EXAMPLES["y"]}), "no rows of x"),
        (lambda s: s.repair(EXAMPLES | {"y": EXAMPLES["y"] + 1}), "values 1 to 2"),
    ],
)
def test_inputs_that_do_not_fit(store, call, message):
    with pytest.raises(ValueError, match=message):
        call(store)


def test_stores_that_cannot_be_made(tmp_path):
    base = jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])

    def make(ids, folder="new", **options):
        some = {name: leaf[: len(ids)] for name, leaf in EXAMPLES.items()}
        return service.create(tmp_path / folder, PLAN, CONFIG, base, ids, some, **options)

    with pytest.raises(ValueError, match="id 'a' is there twice"):
        make(["a", "b", "a"])
    with pytest.raises(ValueError, match="ids is empty"):
        make([])
    with pytest.raises(ValueError, match="groups has 1 entries; there are 2 ids"):
        make(["a", "b"], groups=["g"])
    with pytest.raises(ValueError, match="capacity is 16"):
        make(IDS, groups=["one"] * 32)
    assert not (tmp_path / "new").exists()
    make(["a", "b"], groups=["g", "g"])
    with pytest.raises(ValueError, match="holds something already"):
        make(["a"])
    with pytest.raises(ValueError, match="which holds no store"):
        service.Service(tmp_path)


def test_what_has_read_no_example_does_not_answer(store):
    """Neither a shard whose examples are all gone, nor an order that begins with empty slices."""
    before = store.predict(EXAMPLES["x"])
    store.delete(of_place(0) + of_place(1))
    alone = store.predict(EXAMPLES["x"])  # shard 1
    assert np.abs(alone - before).max() > 0
    assert store.repair(EXAMPLES) == [(0, 0), (0, 1)]
    status = store.status()
    assert status["stages_left"] == [[0, 0], [2, 2]] and status["living_shards"] == 1
    assert status["empty_slices"] == 2
    np.testing.assert_array_equal(service.Service(store.folder).predict(EXAMPLES["x"]), alone)
    assert store.repair(EXAMPLES) == []
    store.delete(of_place(2))
    assert store.repair(EXAMPLES) == [(1, 0), (1, 1)]
    assert store.status()["stages_left"] == [[0, 0], [2, 2]]
    store.delete([of_place(3)[0]])  # leaves the order that begins with the empty slice: untrained
    assert store.status()["stages_left"] == [[0, 0], [0, 0]]
    store.delete(of_place(3))
    with pytest.raises(ValueError, match="all examples of the store were deleted"):
        store.repair(EXAMPLES)


def test_a_store_trains_under_the_configuration_that_it_was_made_with(store, monkeypatch):
    store.delete([of_place(1)[0]])
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_option=1")
    other = service.Service(store.folder)
    for call in (
        lambda: other.repair(EXAMPLES),
        lambda: other.train(EXAMPLES),
        lambda: other.verify(EXAMPLES),
    ):
        with pytest.raises(ValueError, match="store' has configuration.LIBTPU_INIT_ARGS.xla_tpu"):
            call()
    assert other.verify()["prefix"] is None
    assert other.delete([of_place(2)[0]])[0].repeated is False


@pytest.mark.parametrize(
    "place", ["ledger.jsonl", "ledger.lock", "training.lock", "orders", "work", "base", "plan.json"]
)
def test_a_store_whose_files_are_links_is_refused(store, place, tmp_path):
    """A store from elsewhere must not make us write or delete outside of it."""
    inside, outside = store.folder / place, tmp_path / "outside"
    if inside.exists():
        inside.rename(outside)
    inside.symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{place} is a link"):
        service.Service(store.folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_ledger_under_two_names_is_changed_under_one(store, tmp_path):
    """Backups by hard links stay what they were."""
    (tmp_path / "backup").hardlink_to(store.ledger.path)
    before = store.ledger.path.read_bytes()
    store.delete([of_place(3)[0]])
    assert (tmp_path / "backup").read_bytes() == before
    after = store.ledger.path.read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    assert service.Service(store.folder).deleted == store.deleted


def test_what_lies_beside_a_store_is_no_link_either(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("")
    (tmp_path / ".store.new").symlink_to(outside)
    base = jax.device_get(vit.build(CONFIG).init(jax.random.key(0))[0])
    with pytest.raises(ValueError, match=".store.new is a link"):
        service.create(tmp_path / "store", PLAN, CONFIG, base, IDS, EXAMPLES)
    assert [file.name for file in outside.iterdir()] == ["mine"]
