"""Grammars in the engine: what comes out matches, whatever happens to the sequence on its way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loaders.fake import EOS_TOKEN_IDS, FakeLoader
from tests.helpers.toy_runner import ToyRunner, make_core
from tgwui_k8s.contract import GenerationRequest, LoadRequest, ModelInfo
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.grammar import GrammarError, Grammars
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.sampling import SamplingParams

NOWHERE = Path("nowhere")
# The fake model chatters in letters; so strings, arrays and objects come to an end.
ENDINGS = {ord('"'): 9.0, ord("}"): 9.0, ord("]"): 9.0}


def grammar(lark: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def json_grammar(schema: dict) -> str:
    compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
    return json.dumps({"grammars": [{"json_schema": compact}]})


DIGITS = grammar("start: /[0-9]{5}/")
PAIRS = grammar('start: "<" /[a-z]{2}/ ("," /[a-z]{2}/){3,12} ">"')


def fake_core(*, num_blocks: int = 400, max_num_seqs: int = 8) -> EngineCore:
    request = LoadRequest(
        model_path="fake",
        loader="fake",
        max_num_seqs=max_num_seqs,
        block_size=4,
        kv_cache_bytes=num_blocks * 16,
        max_model_len=400,
    )
    runner = FakeLoader().load(request, lambda progress: None)
    limits = EngineSettings(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=64, max_waiting_requests=100
    )
    return EngineCore(runner, limits, grammars=Grammars.of(runner.info, NOWHERE))


def make_request(name: str, grammar: str, seed: int = 1, **fields) -> GenerationRequest:
    sampling = {"max_tokens": 200, "temperature": 2.0, **fields.pop("params", {})}
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(f"prompt {name}".encode()),
        params=SamplingParams(seed=seed, **sampling),
        grammar=grammar,
        **fields,
    )


def outcomes(core: EngineCore, max_steps: int = 3000) -> dict:
    """By request and choice: the tokens, the finish reason, and the error's code."""
    found: dict = {}
    for _ in range(max_steps):
        if not core.has_work:
            return found
        for output in core.step():
            for delta in output.deltas:
                tokens, _, _ = found.get((output.request_id, delta.index), ((), None, None))
                found[output.request_id, delta.index] = (
                    tokens + delta.token_ids, delta.finish_reason, delta.error_code,
                )  # fmt: skip
        core.check_integrity()
    raise AssertionError("the engine does not come to an end")


def text_of(tokens) -> str:
    return bytes(token for token in tokens if token not in EOS_TOKEN_IDS).decode()


def test_every_choice_matches_and_ends_with_the_grammar():
    """Three choices, three different texts, each complete; no end before the grammar's."""
    core = fake_core()
    core.add_request(make_request("a", PAIRS, num_choices=3))
    found = outcomes(core)
    texts = {text_of(tokens) for tokens, _, _ in found.values()}
    assert len(texts) == 3
    assert all(re.fullmatch(r"<[a-z]{2}(,[a-z]{2}){3,12}>", text) for text in texts)
    assert {reason for _, reason, _ in found.values()} == {"stop"}


def test_the_model_cannot_end_early_or_go_on():
    """With an end-of-sequence token that is most likely everywhere, and with one that is never."""
    core = fake_core()
    eager = {"logit_bias": {EOS_TOKEN_IDS[0]: 80.0}}
    core.add_request(make_request("eager", DIGITS, params=eager))
    core.add_request(make_request("endless", DIGITS, params={"ignore_eos": True}))
    core.add_request(make_request("late", DIGITS, params={"min_tokens": 50}))
    for tokens, reason, _ in outcomes(core).values():
        assert re.fullmatch("[0-9]{5}", text_of(tokens))
        assert reason == "stop"


def test_others_in_the_batch_are_not_touched():
    """A request without a grammar gives what it gives alone."""
    alone, beside = fake_core(), fake_core()
    free = make_request("free", "", params={"max_tokens": 30, "ignore_eos": True})
    alone.add_request(free)
    for name in "abcde":
        beside.add_request(make_request(name, PAIRS))
    beside.add_request(free)
    assert outcomes(beside)["free", 0] == outcomes(alone)["free", 0]


def test_preemption_keeps_the_place_in_the_grammar():
    """With a cache too small for all, every text is the one it would have been."""
    names = [f"r{i}" for i in range(6)]
    ample, tight = fake_core(), fake_core(num_blocks=24)
    for core in (ample, tight):
        for name in names:
            core.add_request(make_request(name, PAIRS, params={"max_tokens": 60}))
    expected = outcomes(ample)
    assert outcomes(tight) == expected
    assert tight.stats.num_preemptions > 0


def test_guessed_tokens_are_held_to_the_grammar():
    """Where a text repeats itself and is computed ahead, each token is masked where it stands."""
    plain, guessing = fake_core(), fake_core()
    params = {"max_tokens": 60, "logit_bias": {ord("a"): 80.0, ord(","): 90.0}}
    plain.add_request(make_request("a", PAIRS, params=params))
    guessing.add_request(make_request("a", PAIRS, params={**params, "prompt_lookup_num_tokens": 8}))
    assert outcomes(guessing) == outcomes(plain)
    assert guessing.stats.num_accepted_tokens > 10
    assert guessing.num_steps < plain.num_steps - 10


def test_resumed_tokens_are_replayed():
    """Cut anywhere, the rest is what it would have been; complete texts end at once."""
    core = fake_core()
    core.add_request(make_request("a", PAIRS))
    tokens = outcomes(core)["a", 0][0]
    for cut in range(len(tokens) + 1):
        core.add_request(make_request("a", PAIRS, resume_token_ids=(tokens[:cut],)))
        assert outcomes(core)["a", 0][:2] == (tokens[cut:], "stop")


def test_what_cannot_be_fails_alone():
    """A grammar that does not compile, and resumed tokens that do not match, end with a reason."""
    core = fake_core()
    core.add_request(make_request("good", DIGITS))
    core.add_request(make_request("broken", grammar('start: "a" nothing')))
    resumed = (tuple(b"12x"), tuple(b"12"))
    core.add_request(make_request("wrong", DIGITS, num_choices=2, resume_token_ids=resumed))
    core.add_request(make_request("empty", grammar("start: A\nA: /a/ & /b/")))
    found = outcomes(core)
    assert found["good", 0][1:] == ("stop", None)
    assert found["broken", 0][1:] == ("error", "invalid_grammar")
    assert found["wrong", 0][1:] == ("error", "invalid_grammar")
    assert re.fullmatch("[0-9]{3}", text_of(found["wrong", 1][0]))
    assert found["empty", 0][1:] == ("error", "invalid_grammar")


def test_an_aborted_request_is_forgotten_while_its_grammar_compiles():
    """Its grammar arrives for nobody; the next request is served."""
    core = fake_core()
    core.add_request(make_request("gone", PAIRS))
    core.abort("gone")
    core.add_request(make_request("next", DIGITS))
    assert {name for name, _ in outcomes(core)} == {"next"}


def test_reasoning_ends_within_its_budget():
    """The API's rule for a budget: so many tokens, then the closing tag, then the answer."""
    core = fake_core()
    closing = EOS_TOKEN_IDS[1] - 1
    lark = (
        f"start: thought <[{closing}]> rest\nthought[max_tokens=7]: /(?s:.*)/\nrest: /[0-9]{{3}}/"
    )
    core.add_request(make_request("a", grammar(lark)))
    tokens, reason, _ = outcomes(core)["a", 0]
    assert tokens.index(closing) <= 7
    assert re.fullmatch("[0-9]{3}", text_of(tokens[tokens.index(closing) + 1 :]))
    assert reason == "stop"


def test_an_engine_without_grammars_says_so():
    """It never generates text that nothing holds."""
    core = make_core(ToyRunner())
    core.add_request(make_request("a", DIGITS))
    assert outcomes(core)["a", 0][1:] == ("error", "invalid_grammar")


def test_models_without_a_tokenizer_have_no_grammars(tmp_path):
    """There is nothing to compile for; a broken tokenizer fails the request, not the engine."""
    info = ModelInfo(
        loader="fake", architecture="A", dtype="float32", device="cpu", max_model_len=10,
        vocab_size=10, eos_token_ids=(1,),
    )  # fmt: skip
    assert Grammars.of(info, tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    grammars = Grammars.of(info, tmp_path)
    assert grammars is not None
    with pytest.raises(GrammarError, match="tokenizer"):
        grammars.compile(DIGITS)


NAMES = st.sampled_from(["a", "bc", "d e", "ü", 'q"q', "x/y"])
EXACT = st.integers(-(2**53), 2**53)
"""What the library holds exactly; the API refuses the others."""
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-1000, 1000),
        st.integers(0, 5000),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.just({"type": "number", "minimum": 0, "maximum": 1}),
    st.just({"type": "string", "pattern": "^[a-f]{2,4}$"}),
    st.just({"type": "string", "format": "date"}),
    st.builds(lambda values: {"enum": values}, st.lists(st.integers(0, 9) | NAMES, min_size=1)),
    st.builds(lambda value: {"const": value}, st.booleans() | NAMES | EXACT),
)


def _objects(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(NAMES, inner, max_size=4).flatmap(
        lambda properties: st.builds(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            },
            st.lists(st.sampled_from(sorted(properties)), unique=True)
            if properties
            else st.just([]),
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        _objects(inner)
        | st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        )
        | st.builds(lambda choices: {"anyOf": choices}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(st.lists(SCHEMAS, min_size=1, max_size=4), st.integers(0, 2**32), st.floats(0, 20))
def test_random_schemas_hold_random_models(schemas, seed, temperature):
    """Whatever the schema and however wild the model: the answer parses and validates."""
    core = fake_core()
    params = {"temperature": temperature, "max_tokens": 350, "logit_bias": ENDINGS}
    for place, schema in enumerate(schemas):
        core.add_request(make_request(str(place), json_grammar(schema), seed, params=params))
    for (name, _), (tokens, reason, code) in outcomes(core).items():
        assert reason in ("stop", "length"), (schemas[int(name)], code)
        if reason == "stop":
            jsonschema.validate(json.loads(text_of(tokens)), schemas[int(name)])
