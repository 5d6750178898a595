"""Every setting, once: its name, type, default and help.

Flags, `TGWUI_*` environment variables, the YAML file (a ConfigMap) and the reference page
`docs/settings.md` are generated from these dataclasses; see `tgwui_k8s.settings` for where values
come from and which source wins. A field `kv_cache_memory` is the flag `--kv-cache-memory`, the
variable `TGWUI_KV_CACHE_MEMORY` and the key `kv-cache-memory`. Internals are not knobs: a field
here is something an operator has a reason to set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, NewType

ByteSize = NewType("ByteSize", int)
"""A number of bytes; written as 4GiB, 512MB or a plain number."""


def setting(
    default: Any,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    metavar: str | None = None,
    bounds: tuple[float | None, float | None] = (None, None),
    secret: bool = False,
) -> Any:
    """A dataclass field with what its flag, variable and documentation need.

    `aliases` are further flag spellings (text-generation-webui's or vLLM's), without dashes in
    front. A tuple default makes a flag that may be repeated. `bounds` are the least and the
    largest number allowed. A `secret` has no flag, because flags show in `ps`, and is masked
    wherever settings are printed.
    """
    metadata = {
        "help": help,
        "aliases": aliases,
        "metavar": metavar,
        "bounds": bounds,
        "secret": secret,
    }
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is loaded."""

    model: str = setting(
        "demo",
        "Model to serve: a folder or file below --model-dir, an absolute path, or 'demo'.",
        metavar="NAME|PATH",
    )
    model_dir: str = setting(
        "models", "Directory that holds the models (the EFS mount). Read only.", metavar="DIR"
    )
    served_model_name: tuple[str, ...] = setting(
        (), "Name(s) clients use; default: the model's folder name. May be repeated."
    )
    loader: str = setting(
        "auto", "Loader by text-generation-webui's name; 'auto' infers it from the model."
    )
    loader_option: tuple[str, ...] = setting(
        (), "KEY=VALUE for the chosen loader; see 'tgwui-k8s loaders'. May be repeated."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto",
        "Type to compute in; 'auto' takes the checkpoint's where the device is good at it.",
        aliases=("torch-dtype",),
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Device to run on.")
    max_model_len: int | None = setting(
        None,
        "Longest prompt plus completion in tokens; default: the model's own limit.",
        aliases=("ctx-size", "n-ctx", "max-seq-len"),
        bounds=(1, None),
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that lies in the model folder. Only for folders you trust."
    )
    chat_template: str | None = setting(
        None, "Jinja file to use instead of the model's own chat template.", metavar="FILE"
    )
    tool_call_parser: Literal[
        "auto",
        "deepseek-v3",
        "deepseek-v3.1",
        "functiongemma",
        "gemma",
        "granite",
        "harmony",
        "hermes",
        "llama3-json",
        "mistral",
        "mistral-named",
        "pythonic",
    ] = setting("auto", "How the model writes tool calls; 'auto' tells from its chat template.")
    lora: tuple[str, ...] = setting(
        (),
        "LoRA adapter in PEFT's format, which clients name as their model. May be repeated.",
        aliases=("lora-modules",),
        metavar="NAME=PATH",
    )
    lora_dir: str | None = setting(
        None,
        "Directory of the adapters that /v1/internal/lora/load may load. Read only.",
        metavar="DIR",
    )
    load_in_8bit: bool = setting(
        False, "Round the weights to 8 bits while they are read: half the memory of 16."
    )
    load_in_4bit: bool = setting(
        False, "Round the weights to 4 bits while they are read; less exact than AWQ or GPTQ."
    )
    tensor_parallel_size: int | None = setting(
        None,
        "GPUs of this machine (NeuronCores, with Neuron) that share the model's layers; default: "
        "one GPU.",
        aliases=("tp", "tensor-parallel-degree"),
        bounds=(1, None),
    )
    prefetch: Literal["auto", "on", "off"] = setting(
        "auto",
        "Read weights ahead in parallel while they are loaded; 'auto' does so on network and FUSE "
        "file systems.",
    )


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """How requests are batched and how much memory they may use."""

    max_num_seqs: int = setting(64, "Most sequences that run at once.", bounds=(1, None))
    max_num_batched_tokens: int | None = setting(
        None,
        "Token budget of one step; default: 512 on a CPU, 8192 on a GPU.",
        bounds=(1, None),
    )
    max_waiting_requests: int = setting(
        256,
        "Length of the waiting queue; beyond it requests get 503 with Retry-After.",
        bounds=(1, None),
    )
    kv_cache_memory: ByteSize | None = setting(
        None,
        "Memory for the KV cache, such as 4GiB; default: what is free, less a reserve.",
        bounds=(1, None),
    )
    memory_limit: ByteSize | None = setting(
        None,
        "Total memory the engine may use; default: the cgroup's or the device's limit.",
        bounds=(1, None),
    )
    gpu_memory_fraction: float | None = setting(
        None,
        "Share of the GPU's memory that the engine may use, for several on one card; default: "
        "what is free.",
        aliases=("gpu-memory-utilization",),
        bounds=(0.01, 1),
    )
    num_threads: int | None = setting(
        None,
        "Compute threads on a CPU; default: the cgroup's CPU quota.",
        aliases=("threads",),
        bounds=(1, None),
    )
    watchdog_seconds: float = setting(
        60.0,
        "With work pending, a step that takes longer makes /health/live answer 503.",
        bounds=(0.1, None),
    )
    restart_engine: int = setting(
        0,
        "How often a dead engine is started again before the server gives up.",
        metavar="TIMES",
        bounds=(0, None),
    )


@dataclass(frozen=True, kw_only=True)
class NeuronSettings:
    """Models on AWS Inferentia2 and Trainium; only the loader Neuron reads these.

    What is not set comes from the compiled artifacts. Further options: `tgwui-k8s loaders Neuron`.
    """

    tp_degree: int | None = setting(
        None,
        "NeuronCores that the model lies on; default: the artifacts', or all that are visible.",
        bounds=(1, None),
    )
    amp: str | None = setting(
        None, "Type that Neuron computes in: f32, f16, bf16; a dtype's usual name works too."
    )
    batch_size: int | None = setting(
        None, "Sequences that Neuron computes at once; compiled in.", bounds=(1, None)
    )
    n_positions: int | None = setting(
        None, "Longest prompt plus completion on Neuron; compiled in.", bounds=(2, None)
    )
    context_buckets: str | None = setting(
        None,
        "Prompt lengths that Neuron compiles for, such as 128,512,2048; the last is the longest.",
        metavar="LENGTHS",
    )
    neuron_quantization: Literal["none", "s8"] | None = setting(
        None, "Weights of the layers in eight bits."
    )
    neuron_mode: Literal["auto", "continuous", "sample"] = setting(
        "auto",
        "'continuous' batches and samples here; 'sample' is the library's own loop, one request "
        "at a time.",
    )
    neuron_artifacts: str | None = setting(
        None,
        "Folder with the compiled graphs; default: neuron_artifacts/ beside the model.",
        metavar="DIR",
    )
    neuron_compile_on_start: bool = setting(
        False, "Compile at the start where no artifacts match, which may take hours."
    )
    neuron_library: Literal["auto", "transformers-neuronx", "optimum-neuron"] = setting(
        "auto", "Library that runs the model; 'auto' goes by the layout of the artifacts."
    )


@dataclass(frozen=True, kw_only=True)
class LlamaCppSettings:
    """GGUF models; only the loader llama.cpp reads these (more: `tgwui-k8s loaders llama.cpp`)."""

    n_gpu_layers: int | None = setting(
        None,
        "Layers on the GPU; default: all where llama.cpp is built for one.",
        aliases=("gpu-layers",),
        bounds=(-1, None),
    )
    tensor_split: str | None = setting(
        None, "Each GPU's share of the model, such as 3,1.", metavar="SHARES"
    )
    cache_type: str | None = setting(
        None, "Type of the KV cache: f16 (default), f32, bf16, q8_0, q4_0, ...", metavar="TYPE"
    )
    flash_attn: Literal["auto", "on", "off"] = setting("auto", "Flash attention of llama.cpp.")
    no_mmap: bool = setting(False, "Read a GGUF file's weights instead of mapping them.")
    mlock: bool = setting(False, "Keep a GGUF file's weights from being paged out.")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The HTTP side: addresses, keys, limits, life cycle."""

    host: str = setting("127.0.0.1", "Address to listen on.", aliases=("listen-host",))
    port: int = setting(
        5000, "Port of the API; 0 takes a free one.", aliases=("api-port",), bounds=(0, 65535)
    )
    api_key: tuple[str, ...] = setting(
        (),
        "Keys clients must send (environment or file only, so that none shows in 'ps').",
        secret=True,
    )
    api_key_file: str | None = setting(
        None, "File with one API key a line; re-read when it changes.", metavar="FILE"
    )
    admin_key: tuple[str, ...] = setting(
        (), "Keys for model load and unload (environment or file only).", secret=True
    )
    admin_key_file: str | None = setting(
        None, "File with one admin key a line; re-read when it changes.", metavar="FILE"
    )
    drain_timeout: float = setting(
        120.0,
        "Seconds that running requests get to finish after SIGTERM.",
        bounds=(0, None),
    )
    max_request_seconds: float = setting(
        600.0,
        "Longest time one request may take, queueing included; then 504. A client that has not "
        "taken its answer 10 s later is cut off.",
        bounds=(0.1, None),
    )
    max_body_bytes: ByteSize = setting(
        ByteSize(16 * 1024 * 1024), "Largest request body; beyond it 413.", bounds=(1, None)
    )
    sse_keep_alive_seconds: float = setting(
        15.0,
        "A comment line goes out on a stream that has been silent for so long.",
        bounds=(0.01, None),
    )
    root_path: str = setting("", "Path prefix that a proxy in front strips.", metavar="PATH")
    cors_origin: tuple[str, ...] = setting(
        (), "Origin that browsers may call from ('*' for any). May be repeated."
    )
    preset_dir: str | None = setting(
        None, "Directory with sampler presets (*.yaml) beside the built-in ones.", metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class WebuiSettings:
    """The web page: a process of its own beside the API; docs/web-page.md."""

    webui: bool = setting(
        True, "Serve the web page on its own port, where the extra 'ui' is installed."
    )
    webui_port: int = setting(
        7860,
        "Port of the web page, on the address of --host; 0 takes a free one.",
        aliases=("listen-port",),
        bounds=(0, 65535),
    )
    webui_root_path: str = setting(
        "", "Path prefix under which a proxy in front shows the web page.", metavar="PATH"
    )
    webui_api_url: str = setting(
        "",
        "Where programs reach the API, for the page's examples: http://host:port without /v1. "
        "Default: the page's own origin where a proxy is in front, else its host and --port.",
        metavar="URL",
    )


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The gateway, `tgwui-k8s gateway`: which engines, and how hard it tries; docs/gateway.md."""

    gateway_port: int = setting(3000, "Port of the gateway; 0 takes a free one.", bounds=(0, 65535))
    endpoint: tuple[str, ...] = setting(
        (),
        "An engine, such as http://host:5000; another dialect stands in front, as in "
        "tgi+http://host:80. May be repeated.",
        metavar="URL",
    )
    endpoint_file: str | None = setting(
        None, "File with one engine a line; re-read when it changes.", metavar="FILE"
    )
    endpoint_dns: str | None = setting(
        None,
        "URL whose name resolves to all engines (a headless Service), resolved every 5 s.",
        metavar="URL",
    )
    endpoint_selector: str | None = setting(
        None,
        "Kubernetes: label selector of the Services whose pods are the engines.",
        metavar="SELECTOR",
    )
    endpoint_namespace: str | None = setting(
        None, "Kubernetes: the namespace of those Services; default: the pod's own."
    )
    endpoint_port_name: str = setting(
        "", "Kubernetes: the name of those Services' port; default: their first."
    )
    endpoint_api_key: tuple[str, ...] = setting(
        (), "Key that engines get in place of the client's (environment or file only).", secret=True
    )
    endpoint_poll_seconds: float = setting(
        1.0, "How often each engine is asked for its health and load.", bounds=(0.05, None)
    )
    endpoint_silent_seconds: float = setting(
        10.0,
        "An engine that sends nothing at all for so long is dead: its requests go elsewhere.",
        bounds=(0.1, None),
    )
    expected_model: tuple[str, ...] = setting(
        (), "Model to wait for although no engine has served it yet. May be repeated."
    )
    connect_timeout: float = setting(
        2.0, "Seconds until the connection to an engine stands.", bounds=(0.01, None)
    )
    first_byte_timeout: float = setting(
        120.0, "Seconds until the first event of a stream.", bounds=(0.01, None)
    )
    between_chunks_timeout: float = setting(
        30.0, "Seconds from one event of a stream to the next.", bounds=(0.01, None)
    )
    client_stall_seconds: float = setting(
        60.0,
        "A client that takes nothing of its answer for so long is cut off.",
        bounds=(0.1, None),
    )
    max_retries: int = setting(
        3, "Attempts after the first, before the first byte.", metavar="TIMES", bounds=(0, None)
    )
    max_continuations: int = setting(
        3, "How often one stream may go on elsewhere.", metavar="TIMES", bounds=(0, None)
    )
    max_queued_requests: int = setting(
        1000, "Length of each model's queue; beyond it requests get 503.", bounds=(0, None)
    )
    queue_timeout: float = setting(
        60.0, "Seconds that a request waits for an engine, or for one to start.", bounds=(0, None)
    )
    max_endpoint_requests: int = setting(
        512, "Requests that one engine gets from one gateway at a time.", bounds=(1, None)
    )
    affinity_bound: float = setting(
        1.25,
        "A conversation stays at its engine while that has at most so many times the mean load; "
        "0 turns affinity off.",
        bounds=(0, None),
    )
    otlp_endpoint: str | None = setting(
        None,
        "OpenTelemetry collector that gets a span per call, such as http://collector:4318; needs "
        "the extra 'otel'.",
        metavar="URL",
    )
    redis_url: str | None = setting(
        None,
        "Redis in which all replicas count the limits of keys together, such as "
        "redis://:PASSWORD@HOST:6379/0; needs the extra 'redis' (environment or file only).",
        secret=True,
    )
    queue_weight: float = setting(
        2.0, "What a request in an engine's queue counts, in running ones.", bounds=(0, None)
    )
    kv_cache_weight: float = setting(
        4.0, "What a full KV cache counts: times usage / (1 - usage).", bounds=(0, None)
    )


@dataclass(frozen=True, kw_only=True)
class ObservabilitySettings:
    """Logs and metrics."""

    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Least level.")
    log_format: Literal["auto", "json", "text"] = setting(
        "auto", "'auto' writes text on a terminal and JSON lines otherwise."
    )
    log_prompts: bool = setting(False, "Log prompts and completions. Off: they never appear.")
    metrics_compat: Literal["none", "vllm"] = setting(
        "none", "Also expose the metrics that autoscalers need under vLLM's names."
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything, by section. Functions take the section they need, not this."""

    model: ModelSettings = ModelSettings()
    engine: EngineSection = EngineSection()
    neuron: NeuronSettings = NeuronSettings()
    llama_cpp: LlamaCppSettings = LlamaCppSettings()
    server: ServerSettings = ServerSettings()
    webui: WebuiSettings = WebuiSettings()
    gateway: GatewaySettings = GatewaySettings()
    observability: ObservabilitySettings = ObservabilitySettings()


SECTIONS: dict[str, type] = {section.name: type(section.default) for section in fields(Settings)}
"""Section name to its dataclass, in the order of the reference page."""
