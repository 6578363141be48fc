"""llama.cpp's server, from the package xllamacpp. `python llama_server.py -m MODEL --mmproj MMPROJ --port PORT …`

Its options are those of the program `llama-server`. `training.bench.peers` runs this file in an environment that has
xllamacpp and not vlroute.
"""

from __future__ import annotations

import argparse
import threading

import xllamacpp

FLOAT32 = 0  # in ggml's list of types


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--mmproj", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True, help="answers that are generated at the same time")
    parser.add_argument("--ctx-size", type=int, required=True, help="tokens of all answers together")
    parser.add_argument("--alias", help="name of the model; by default, it chooses")
    parser.add_argument("--api-key", help="requests need it; by default, they need none")
    parser.add_argument("--threads", type=int, help="by default, it chooses")
    parser.add_argument("--metrics", action="store_true", help="offer /metrics")
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = options.model, options.mmproj
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_parallel, params.n_ctx = options.parallel, options.ctx_size
    params.cache_type_k = params.cache_type_v = FLOAT32  # as in the other servers
    params.endpoint_metrics = options.metrics
    if options.alias is not None:
        params.model_alias = {options.alias}
    if options.api_key is not None:
        params.api_keys = [options.api_key]
    if options.threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
