"""Peers of the endpoint: `python peer_servers.py chroma|lance TRAIN.npy METRIC FOLDER PORT`, where they are installed.

Chroma's own HTTP server, filled through its client; LanceDB behind the least FastAPI that answers. Prints
`ready PORT NAME` when it answers and serves until its standard input ends. HNSW as ours is built: M 16, ef 200.
"""

# No postponed annotations: FastAPI reads those of a route that is made inside a function.
import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 5000


def chroma(train: Any, metric: str, folder: str, port: int) -> None:
    """`chroma run`, a collection named `bench`.

    A width that is set takes effect when the index is loaded the next time: the server is started again for each.
    """
    import chromadb

    def start() -> tuple["subprocess.Popen[bytes]", Any]:
        command = [str(Path(sys.executable).parent / "chroma"), "run", "--path", folder, "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            try:
                return server, chromadb.HttpClient("127.0.0.1", port)
            except Exception:
                time.sleep(0.2)
        server.terminate()
        raise RuntimeError("chroma does not answer")

    server, client = start()
    try:
        hnsw: Any = {"space": metric, "ef_construction": 200, "max_neighbors": 16, "ef_search": 100}
        collection = client.get_or_create_collection("bench", configuration={"hnsw": hnsw})
        for low in range(0, len(train) if collection.count() < len(train) else 0, BATCH):
            part = train[low : low + BATCH]
            collection.upsert([str(low + i) for i in range(len(part))], embeddings=part)
        collection.query(query_embeddings=train[:1], n_results=10)
        print(f"ready {port} {collection.id}", flush=True)
        for line in sys.stdin:  # a line is the next ef_search
            collection.modify(configuration={"hnsw": {"ef_search": int(line)}})
            server.terminate()
            server.wait()
            server, client = start()
            collection = client.get_collection("bench")
            collection.query(query_embeddings=train[:1], n_results=10)  # loads the index
            print(f"ef {int(line)}", flush=True)
    finally:
        server.terminate()
        server.wait()


def lance(train: Any, metric: str, folder: str, port: int) -> None:
    """A table in LanceDB's format with its HNSW index, and one route that takes raw float32."""
    import lancedb
    import pyarrow as pa
    import uvicorn
    from fastapi import FastAPI, Request, Response

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(train.reshape(-1)), train.shape[1])
    kept = lancedb.connect(folder)
    if not Path(folder, "filled").exists():
        rows = pa.table({"id": np.arange(len(train)), "vector": vectors})
        options: Any = {"index_type": "IVF_HNSW_SQ", "metric": {"ip": "dot", "l2": "l2"}[metric]}
        table = kept.create_table("bench", rows, mode="overwrite")
        table.create_index(vector_column_name="vector", num_partitions=1, m=16, ef_construction=200, **options)
        Path(folder, "filled").touch()
    opened: dict[str, Any] = {}
    app = FastAPI()

    @app.post("/search")
    async def search(request: Request, k: int = 10, ef: int = 100, refine: int = 0) -> Response:
        if not opened:
            connection = await lancedb.connect_async(folder)
            opened["table"] = await connection.open_table("bench")
        queries = np.frombuffer(await request.body(), "<f4").reshape(-1, train.shape[1])
        one = queries[0] if len(queries) == 1 else list(queries)
        query = opened["table"].query().nearest_to(one).limit(k).select(["id"]).ef(ef)
        found = await (query.refine_factor(refine) if refine else query).to_arrow()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, found.schema) as writer:
            writer.write_table(found)
        return Response(sink.getvalue().to_pybytes())

    config = uvicorn.Config(app, host="127.0.0.1", port=port, access_log=False, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.1)
    print(f"ready {port} bench", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    which, path, metric, folder, port = sys.argv[1:]
    {"chroma": chroma, "lance": lance}[which](np.load(path), metric, folder, int(port))
