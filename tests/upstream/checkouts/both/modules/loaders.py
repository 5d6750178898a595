"""What each loader is called and takes."""

from collections import OrderedDict

loaders_and_params = OrderedDict(
    {
        "Transformers": [
            "cpu",
            "trust_remote_code",
        ],
        "llama.cpp": [
            "n_ctx",
        ],
    }
)


def transformers_samplers():
    return {"temperature", "top_p"}


loaders_samplers = {
    "Transformers": transformers_samplers(),
    "llama.cpp": {
        "temperature",
    },
}
