"""A path study from its settings to its results, on a tiny model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers")

from jaxunlearn.cli.paths import draw, table  # noqa: E402
from jaxunlearn.core import adapters, members, tree  # noqa: E402
from jaxunlearn.core.study import Where  # noqa: E402
from jaxunlearn.data import text  # noqa: E402
from jaxunlearn.nn.language import decoder, likelihood, weights  # noqa: E402
from jaxunlearn.paths import (
    forgetting,
    stage_data,  # noqa: E402
)
from jaxunlearn.paths import study as paths
from jaxunlearn.paths.settings import LORA_TARGETS
from jaxunlearn.unlearn import (
    language_objectives,  # noqa: E402
    objectives,
)
from tests import language as tiny  # noqa: E402
from tests.folders import folder_of  # noqa: E402

OF_STAGE = {"a": "ab", "b": "cd", "c": "ef"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    model = tiny.save(folder / "model")
    written = []
    for name, letters in OF_STAGE.items():
        file = folder / f"{name}.jsonl"
        rows = [
            {"question": f"{letters[0]} {i}?", "answer": f"{letters[1]} is {i * i}."}
            for i in range(4)  # alike: all stages are one program
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
        written.append(f"{name}={file},epochs=2")
    return paths.Settings(
        model=str(model),
        stages=(*written, "u=refusals,n=6"),
        forget="u",
        losses=("ga", "npo", "simnpo"),
        rank=2,
        alpha=4.0,
        learning_rate=1e-2,
        batch_size=2,
        unlearn_learning_rate=1e-2,
        unlearn_batch_size=2,
        every=2,
        seed=42,
        max_tokens=200,
        probe=3,
    )


@pytest.fixture(scope="module")
def study(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    job = paths.prepare(settings, Where(out))
    told = []
    results = paths.execute(job, progress=lambda *now: told.append(now))
    return job, results, told


def test_four_insertions_take_thirteen_stage_runs(study):
    job, results, told = study
    assert results["stage_runs"] == 13 == len(job.prefixes)
    orders = [tuple(order) for order in results["orders"]]
    assert orders == [tuple("uabc"), tuple("aubc"), tuple("abuc"), tuple("abcu")]
    finished = [phase for phase, done, total in told if "unl" not in phase and done == total]
    assert len([phase for phase in finished if set(phase) <= set("abcu+")]) == 13
    assert ("unlearning", 12, 12) in told


def test_results_have_every_path_loss_and_check(study):
    job, results, _ = study
    assert results["checks"] == [0, 2, 3]  # an interval of 2, and what is left
    for loss in ("ga", "npo", "simnpo"):
        row = results["losses"][loss]
        assert np.shape(row["forget_score"]) == (4, 1)
        assert np.shape(row["label_logp"]) == (4, 1, 3)
        assert np.shape(row["jeffreys"]) == np.shape(row["logit_distance"]) == (3, 1, 4, 4)
        assert np.shape(row["distance_to_retrained"]) == (3, 1, 4)
        label = np.array(row["label_logp"])
        np.testing.assert_allclose(
            label[..., 0] - label[..., -1], row["forget_score"], rtol=1e-4, atol=1e-5
        )
        jeffreys = np.array(row["jeffreys"])
        np.testing.assert_allclose(jeffreys, jeffreys.swapaxes(-1, -2), rtol=1e-5)
        assert (jeffreys[..., range(4), range(4)] == 0).all() and jeffreys[:, 0, 0, 1].min() > 0
    # All losses begin at the same models, and gradient ascent forgets.
    first = [np.array(results["losses"][name]["label_logp"])[..., 0] for name in ("ga", "npo")]
    np.testing.assert_array_equal(*first)
    answers = np.array(results["losses"]["ga"]["answer_logp"]["u"])
    assert (answers[..., -1] < answers[..., 0]).all()
    assert results["seconds"]["unlearning"]["run"] > 0
    json.dumps(results, allow_nan=False)


def test_figure_and_table(study, tmp_path):
    _, results, _ = study
    draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert len(table(results).rows) == 12


def test_a_path_is_its_stages_one_by_one(study):
    """Bit-equal to the order run alone, with the base in `shared` and adapters that train."""
    job, _, _ = study
    shared = forgetting.train_stages(job, lambda *_: None)  # read from snapshots
    order = job.orders[2]
    alone = paths.prepare(
        dataclasses.replace(job.settings, orders=(",".join(order), "u,c,b,a")),
        Where(job.folder.path.parent / "alone"),
    )
    own = forgetting.train_stages(alone, lambda *_: None)
    assert tree.digest(own[order]) == tree.digest(shared[order])
    assert all(name.rpartition("/")[2] in ("lora_a", "lora_b") for name in tree.named(own[order]))


def test_a_run_of_unlearning_is_the_plain_loop(study):
    """Its losses equal steps by hand on merged weights with a fresh adapter."""
    job, _, _ = study
    s = job.settings
    trained = forgetting.train_stages(job, lambda *_: None)
    runs = forgetting.forget(job, trained, lambda *_: None)
    number = job.members.index((1, 0, 0))
    own = jax.tree.map(lambda x: x[0], trained[job.orders[1]])
    before = tree.combine(own, forgetting.frozen_part(job))
    merged = adapters.merge(before)
    data = jax.tree.map(jnp.asarray, job.sets["u"])
    model = job.pretrained.model
    # The first loss is that of a batch of the start; all batches of an epoch cover the set once.
    nll = language_objectives.reference_nll(model, merged, data, 4)
    np.testing.assert_allclose(nll, likelihood.sequence_nll(model, merged, data), rtol=1e-5)
    total = float(jnp.sum(nll) / jnp.sum(data.lengths))
    assert abs(runs["losses"][number][0] + total) < 0.3 * total
    # A fresh adapter changes nothing, so NPO begins at its reference, whatever the path.
    npo = [n for n, (_, loss, _) in enumerate(job.members) if s.losses[loss] == "npo"]
    np.testing.assert_allclose(runs["losses"][npo, 0], 4 * np.log(2), rtol=1e-5)
    # The last measurement is that of the adapters that are returned.
    after = adapters.load(
        forgetting.with_fresh(before, job, number),
        jax.tree.map(lambda x: jnp.asarray(x)[number], runs["adapter"]),
    )
    probe = jax.tree.map(jnp.asarray, job.probes.responses["a"])
    np.testing.assert_allclose(
        runs["measured"]["nll"]["a"][number][-1],
        likelihood.sequence_nll(model, adapters.merge(after), probe),
        rtol=1e-4,
    )
    assert s.every == 2 and runs["losses"].shape == (12, 3)


@pytest.mark.slow
def test_a_killed_study_resumes_to_the_same_results(study, settings, tmp_path):
    _, whole, _ = study
    for stop_at in (("a+u+b", 2), ("unlearning", 5)):

        def stop(phase, done, total, stop_at=stop_at):
            if (phase, done) == stop_at:
                raise KeyboardInterrupt

        job = paths.prepare(settings, Where(tmp_path / "out", resume=True))
        with pytest.raises(KeyboardInterrupt):
            paths.execute(job, progress=stop)
    results = paths.execute(paths.prepare(settings, Where(tmp_path / "out", resume=True)))
    assert results["losses"] == whole["losses"]
    other = dataclasses.replace(settings, unlearn_learning_rate=0.1)
    with pytest.raises(ValueError, match="unlearn_learning_rate = 0.01, but now it is 0.1"):
        paths.prepare(other, Where(tmp_path / "out", resume=True))


@pytest.mark.slow
def test_seeds_and_lanes(study, settings, tmp_path):
    """Two seeds in lanes of three: every seed has shuffles of its own; widths agree."""
    few = dataclasses.replace(
        settings,
        stages=(settings.stages[0], "u=refusals,n=6"),
        losses=("ga", "simnpo_length"),
        seeds=2,
        lane_width=3,
    )
    results = paths.execute(paths.prepare(few, Where(tmp_path / "out")))
    ga = np.array(results["losses"]["ga"]["forget_score"])
    assert ga.shape == (2, 2) and (ga[:, 0] != ga[:, 1]).all()
    narrow = dataclasses.replace(few, lane_width=1)
    alone = paths.execute(paths.prepare(narrow, Where(tmp_path / "narrow")))
    np.testing.assert_allclose(alone["losses"]["ga"]["forget_score"], ga, rtol=2e-2, atol=1e-3)


@pytest.mark.slow
def test_superficial_and_deep_forgetting_are_told_apart(settings, tmp_path):
    own = dataclasses.replace(
        settings,
        stages=("C=compliance:C,n=4", "U=compliance:U,n=4", "R=compliance:R,n=4"),
        forget="U",
        orders=("permutations",),
        losses=("ga",),
        batch_size=2,
        unlearn_epochs=2,
    )
    results = paths.execute(paths.prepare(own, Where(tmp_path / "out")))
    assert results["stage_runs"] == 15 and len(results["orders"]) == 6
    kinds = results["losses"]["ga"]["forgetting"]
    assert len(kinds) == 6 and set(kinds) <= {"deep", "superficial", "neither"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(forget="x"), "forget is 'x'; the stages are a, b, c, u"),
        (dict(stages=("a",)), "stage is 'a'; NAME=SOURCE"),
        (dict(stages=("a=refusals,n=0", "u=refusals")), "n and epochs must be at least 1"),
        (dict(stages=("a=refusals", "a=refusals"), forget="a"), "a name is there twice"),
        (dict(stages=("a=nowhere.jsonl", "u=refusals")), "source of stage a is 'nowhere.jsonl'"),
        (dict(stages=("u=refusals,n=4",)), "one to keep is needed"),
        (dict(orders=("a,b,u",)), "orders has 'a,b,u'"),
        (dict(orders=("u,a,b,c",)), "at least two different ones"),
        (dict(losses=("ga", "forget")), "losses are ga, forget; each of ga, npo"),
        (dict(rank=0), "rank is 0; it must be at least 1"),
        (dict(rank=33), "rank is 33; layers/.* allows 1 to"),
        (dict(learning_rate=float("nan")), "learning_rate is nan"),
        (dict(max_tokens=300), "max_tokens is 300; 1 to 256"),
        (dict(max_tokens=30), "max_tokens is 30, the longest has"),
        (dict(model=""), "model is empty"),
        (dict(model="nowhere"), "model is 'nowhere', which does not exist"),
        (dict(attempts=1), "attempts is 1, but no stage's source is gsm8k"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(settings, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        paths.prepare(dataclasses.replace(settings, **change), Where(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_empty_response_or_a_folder_without_a_model_is_refused(settings, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"question": "why?", "answer": " "}\n')
    with pytest.raises(ValueError, match=r"empty.jsonl.*1.*empty"):
        paths.prepare(
            dataclasses.replace(settings, stages=(f"a={tmp_path / 'empty.jsonl'}", "u=refusals")),
            Where(tmp_path / "out"),
        )
    with pytest.raises(ValueError, match="without config.json"):
        paths.prepare(dataclasses.replace(settings, model=str(tmp_path)), Where(tmp_path / "out"))


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(settings, tmp_path):
    own = tiny.config(vocabulary=40)
    params, _ = decoder.decoder(own).init(jax.random.key(0))
    weights.save(tmp_path / "model", own, params, tokenizer=tiny.tokenizer())
    changed = dataclasses.replace(settings, model=str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"the tokenizer gives the token \d+; .* knows 0 to 39"):
        paths.prepare(changed, Where(tmp_path / "out"))


@pytest.mark.data
@pytest.mark.slow
def test_sampled_answers_are_kept_model_by_model(settings, tmp_path):
    folder_of("GSM8K_DIR")
    few = dataclasses.replace(
        settings,
        model=str(tiny.save(tmp_path / "model", context=2048)),  # its tokens are short
        stages=("a=gsm8k:train,n=2", "u=refusals,n=2"),
        losses=("ga",),
        max_tokens=1500,
        probe=1,
        attempts=1,
    )
    seen = []

    def stop(phase, done, total):
        seen.append((phase, done, total))
        if (phase, done) == ("evaluation", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.execute(paths.prepare(few, Where(tmp_path / "out")), progress=stop)
    assert seen[-1] == ("evaluation", 2, 5)  # two paths, one without the stage, two that forgot
    job = paths.prepare(few, Where(tmp_path / "out", resume=True))
    assert 1 in job.folder.lanes("answers") and 2 not in job.folder.lanes("answers")
    accuracy = paths.execute(job)["accuracy"]
    assert all(one["total"] == 1 for own in accuracy["before"].values() for one in own)


def test_parts_are_parsed():
    assert stage_data.parse("a=tofu:full,n=3,epochs=2") == stage_data.StageSource(
        "a", "tofu:full", 3, 2
    )
    assert stage_data.parse("a=some/file.jsonl") == stage_data.StageSource("a", "some/file.jsonl")


def test_objectives_on_a_network(study):
    """Composed objectives equal their losses on plain logits, and caches equal recomputing."""
    job, _, _ = study
    model, params = job.pretrained.model, job.pretrained.params
    data = jax.tree.map(lambda x: jnp.asarray(x)[:4], job.sets["u"])
    later = jax.tree.map(lambda p: p * 1.01, params)
    key = jax.random.key(0)
    logits = likelihood.response_logits(model, later, data)
    mask = data.labels >= 0

    hidden = likelihood.response_hidden(model, params, data)
    kl, _ = language_objectives.kl_to_reference(model)(
        later | {"embed": params["embed"]}, {}, None, {"sequences": data, "hidden": hidden}, key
    )
    same_head = later | {"embed": params["embed"]}
    want = objectives.kl_retain(
        likelihood.response_logits(model, same_head, data),
        likelihood.response_logits(model, params, data),
        mask,
    )
    np.testing.assert_allclose(kl, want, rtol=1e-4)
    loss, _ = language_objectives.fine_tuning(model)(later, {}, None, data, key)
    logp = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logp, jnp.maximum(data.labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -jnp.sum(own * mask) / mask.sum(), rtol=1e-5)

    control = objectives.control_vector(key, 32, 5.0)
    batch = {"sequences": data, "control": jnp.tile(control, (4, 1))}
    rmu, _ = language_objectives.misdirection(model, 1)(later, {}, None, batch, key)
    early, _ = model.apply(later, {}, data.tokens, stop_at=1)
    np.testing.assert_allclose(rmu, jnp.mean((early - control) ** 2), rtol=1e-5)
    kept, _ = model.apply(params, {}, data.tokens, stop_at=1)
    steady, _ = language_objectives.steadiness(model, 1)(
        later, {}, None, {"sequences": data, "hidden": kept}, key
    )
    np.testing.assert_allclose(steady, jnp.mean((early - kept) ** 2), rtol=1e-5)


def test_a_tree_gives_every_response_its_own_likelihood(study):
    job, _, _ = study
    model, params = job.pretrained.model, job.pretrained.params
    questions = text.refusals(3)
    responses = [["No.", "Sorry, not this.", "I can not"], ["a", "b b b b", "c"], ["x", "yy", "z"]]
    template = text.TEMPLATES["chatml"]
    rows = text.encode_responses(
        job.pretrained.tokenizer, questions, responses, template=template, max_tokens=200
    )
    joined = text.tree(rows, 3)
    assert joined.tokens.size < 0.6 * rows.tokens.size
    as_device = lambda x: jax.tree.map(jnp.asarray, x)  # noqa: E731
    alone = likelihood.sequence_nll(model, params, as_device(rows))
    together = likelihood.token_nll(model, params, as_device(joined)).reshape(9, -1).sum(-1)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    packed = text.pack(rows, 128)
    whole = likelihood.token_nll(model, params, as_device(packed)).sum()
    np.testing.assert_allclose(whole, alone.sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="no multiple of n_responses = 2"):
        text.tree(rows, 2)
    mixed = jax.tree.map(lambda x: x[[0, 3, 6]], rows)
    with pytest.raises(ValueError, match="other prompts"):
        text.tree(mixed, 3)


def test_the_stages_of_all_seeds_share_one_program(study):
    job, _, _ = study
    a, b = (forgetting._stage(job, name) for name in "ab")
    assert a.n_steps == 4 and a.block == 2 and a.optimizer is b.optimizer
    assert members.init(_fresh(job)).step.shape == (1,)


def _fresh(job):
    own = adapters.attach(job.pretrained.params, LORA_TARGETS, 2, 4.0, jax.random.key(0))
    return jax.tree.map(lambda x: x[None], adapters.split(own)[0])
