"""The machinery behind the doubles beside it: cores, compiler, files, and arithmetic on the CPU.

`tests/neuron_standin` is a stand-in for AWS's `transformers-neuronx` where there is no Neuron
hardware. It is a double, written from the documented contract; none of it is AWS's code, and it
says nothing about speed. Tests put it on the path (`tests.helpers.neuron`); nothing else does.

It answers every call as the library is documented to answer, messages included, and computes the
same text as Transformers does, with a key-value cache of its own that goes wrong where the
library's goes wrong. What the library would accept in silence (an unknown keyword, a missing
`start_ids`, a paused slot whose cache was overwritten) it accepts as well, but writes down as a
violation, which fails the test.

Where it stands in for hardware, the environment says what the host is like:

| variable | meaning |
|---|---|
| `NEURON_STANDIN_JOURNAL` | file that gets one line of JSON per event, from every process |
| `NEURON_STANDIN_CORES` | folder of lock files, by which processes exclude one another |
| `NEURON_STANDIN_INSTANCE` | instance type of the host; inf2.24xlarge |
| `NEURON_STANDIN_CORE_BYTES` | memory of a core; 16 GiB |
| `NEURON_STANDIN_COMPILE_SECONDS` | time one graph takes to compile; 0 |
| `NEURON_STANDIN_LOAD_SECONDS` | time that reading the weights takes; 0 |
| `NEURON_STANDIN_STEP_SECONDS` | time that one graph runs; 0 |
| `NEURON_STANDIN_COMPILER_FAILS` | "1": no graph can be compiled |
| `NEURON_STANDIN_BREAKS_AFTER` | number of graph runs in a process before its device breaks |

Known to be simpler than the library: there is no persistent compiler cache, speculation and
embeddings as input are refused, `unroll` and layouts change only the names of the artifacts, and
the classes other than Llama's and Mistral's compute every prefix anew.
"""
