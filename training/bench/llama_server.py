"""llama.cpp's server: `python llama_server.py MODEL MMPROJ --port PORT --sequences N --context TOKENS [--threads N]`

`training.bench.peers` runs this file in an environment that has the package xllamacpp and not vlroute.
"""

from __future__ import annotations

import argparse
import threading

import xllamacpp

FLOAT32 = 0  # in ggml's list of types


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("mmproj")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of each sequence")
    parser.add_argument("--threads", type=int, help="by default, it chooses")
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = options.model, options.mmproj
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_parallel, params.n_ctx = options.sequences, options.sequences * options.context
    params.cache_type_k = params.cache_type_v = FLOAT32  # as in the other servers
    if options.threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
