"""Names of upstream's files and the places in them that several abilities share."""

from __future__ import annotations

import libcst.matchers as m

from tgwui_k8s.patching.verbs import call, line

MODELS = "modules/models.py"
LOADERS = "modules/loaders.py"
SETTINGS = "modules/models_settings.py"
SHARED = "modules/shared.py"
TEXT = "modules/text_generation.py"
CALLBACKS = "modules/callbacks.py"
SCRIPTS = ("modules/api/script.py", "extensions/openai/script.py")
"""The API; it moved in March 2026."""

LOAD = "load_model(model_name, loader)"
FROM_HF = "generate_reply_HF(question, original_question, state)"
FROM_CUSTOM = "generate_reply_custom(question, original_question, state)"

PARSE_ARGS = line(
    m.Assign(
        targets=[m.AssignTarget(target=m.Name("args"))], value=call("parser.parse_args", args=[])
    )
)
STARTS_SERVER = m.Call(
    args=[
        m.ZeroOrMore(),
        m.Arg(keyword=m.Name("host")),
        m.ZeroOrMore(),
        m.Arg(keyword=m.Name("port")),
        m.ZeroOrMore(),
    ]
)
"""The call that runs uvicorn, whatever of it other abilities have changed."""
