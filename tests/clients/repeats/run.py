"""openai-python and openai-node with their own retries, against cuts at every stage: no tool writes twice.

Each request carries a marker of its own. The model calls `save` with it, which counts it. Whatever is cut, no
marker may be counted twice.

| stage | what is cut |
|---|---|
| link | the connection between client and fanfold: reset at any moment, or only the client's half, so that fanfold notices nothing for a second |
| upstream | the connection between fanfold and the model: before an answer, inside it, in either round |
| killed | fanfold, by SIGKILL after every few effects, before a shared store |

Wants FANFOLD_BIN, NODE_BIN and NODE_SUITE (a folder with repeats.js and its packages), and `redis-server`. Ends with
the sums, and with 1 if a marker was counted twice or a stage was not what it should be.
"""

import asyncio
import collections
import json
import os
import pathlib
import random
import sys
import tempfile
import time

import openai

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "support"))
from ports import free_port  # noqa: E402

STAGES = {"link": 800, "upstream": 600, "killed": 600}
AT_ONCE = 40
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000_000))
CHANCE = random.Random(SEED)


async def read_request(reader):
    """The head's first line and the body of a request; None at the end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        fields = (line.partition(":") for line in lines[1:])
        length = next((int(value) for name, _, value in fields if name.lower() == "content-length"), 0)
        return lines[0], await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class World:
    """A model, a tool that counts, and a network in between that breaks."""

    def __init__(self):
        self.saved = collections.Counter()
        self.cuts = collections.Counter()
        self.kills = 0

    # ---- the model and the tool

    async def serve(self, reader, writer):
        try:
            while request := await read_request(reader):
                line, body = request
                body = json.loads(body or b"{}")
                if "/save" in line:
                    await self.save(writer, body["marker"])
                elif not await self.think(writer, body):
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def save(self, writer, marker):
        self.saved[marker] += 1
        await asyncio.sleep(CHANCE.random() * 0.06)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n\r\nsaved")
        await writer.drain()

    async def think(self, writer, body):
        """Streams a reply on a connection that ends with it. False: that is its end."""
        messages = body["messages"]
        marker = messages[0]["content"]
        if messages[-1]["role"] == "tool":
            deltas = [{"content": piece} for piece in ("I ", "saved ", "it.")]
            finish = "stop"
        else:
            call = {"name": "save", "arguments": json.dumps({"marker": marker})}
            deltas = [
                {"content": "One moment. "},
                {"tool_calls": [{"index": 0, "id": "call_" + marker, "type": "function", "function": call}]},
            ]
            finish = "tool_calls"
        pieces = [("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")]
        for delta in deltas:
            pieces.append(self.chunk(delta, None))
        pieces += [self.chunk({}, finish), "data: [DONE]\n\n"]
        cut_at = None
        if marker.startswith("upstream") and CHANCE.random() < 0.4:
            cut_at = CHANCE.randrange(len(pieces))
        for i, piece in enumerate(pieces):
            if i == cut_at:
                self.cuts["upstream"] += 1
                writer.transport.abort()
                return False
            await asyncio.sleep(CHANCE.random() * 0.01)
            writer.write(piece.encode())
            await writer.drain()
        return False

    @staticmethod
    def chunk(delta, finish):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return f"data: {json.dumps(chunk)}\n\n"

    # ---- the link

    def link(self, port, breaks):
        """What listens between a client and fanfold, and breaks some of the connections."""

        async def carry(reader, writer):
            there_reader = None
            for _ in range(1500):
                # While fanfold is down a balancer would keep the connection, too.
                try:
                    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.02)
            if there_reader is None:
                writer.transport.abort()
                return
            pumps = [
                asyncio.create_task(self.pump(reader, there_writer)),
                asyncio.create_task(self.pump(there_reader, writer)),
            ]
            if breaks and CHANCE.random() < 0.8:
                await asyncio.wait(pumps, timeout=CHANCE.random() * 0.4)
                self.cuts["link"] += 1
                for pump in pumps:
                    pump.cancel()
                writer.transport.abort()
                if CHANCE.random() < 0.5:
                    # fanfold notices nothing yet.
                    self.cuts["unnoticed"] += 1
                    await asyncio.sleep(1)
                there_writer.transport.abort()
                return
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            writer.close()
            there_writer.close()

        return carry

    @staticmethod
    async def pump(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass


class Fanfold:
    """fanfold as a process, on a port that stays the same."""

    def __init__(self, folder, world_port, store):
        self.port, self.admin = free_port(), free_port()
        self.folder = folder
        self.config = os.path.join(folder, "fanfold.yaml")
        parameters = {"type": "object", "properties": {"marker": {"type": "string"}}, "required": ["marker"]}
        url = f"http://127.0.0.1:{world_port}"
        config = {
            "listen": f"127.0.0.1:{self.port}",
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            # So many cuts would open the upstream's breaker.
            "upstreams": {"main": {"base_url": url + "/v1", "breaker": {"requests": 1000000, "connects": 1000000},
                                   "retries": {"per_second": 10000}}},
            "tools": {"save": {"parameters": parameters, "http": {"method": "POST", "url": url + "/save"}}},
            "limits": {"ledger_lease": "1s"},
            "audit": {"file": os.path.join(folder, "audit.jsonl")},
            "store": store,
        }
        with open(self.config, "w") as file:
            json.dump(config, file)
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            os.environ["FANFOLD_BIN"], "serve", "--config", self.config,
            stderr=open(os.path.join(self.folder, "log"), "ab"),
        )
        for _ in range(600):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            except OSError:
                if self.process.returncode is not None:
                    break
                await asyncio.sleep(0.02)
        sys.exit("fanfold does not start:\n" + open(os.path.join(self.folder, "log")).read()[-3000:])

    async def kill(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def kill_again_and_again(self, world):
        while True:
            enough = world.saved.total() + CHANCE.randrange(5, 50)
            while world.saved.total() < enough:
                await asyncio.sleep(0.005)
            await asyncio.sleep(CHANCE.random() * 0.05)
            await self.kill()
            world.kills += 1
            await self.start()

    def logged(self, text):
        """How many lines of its log have this in them."""
        with open(os.path.join(self.folder, "log")) as log:
            return sum(text in line for line in log)

    def audit_is_sound(self):
        import subprocess

        log = os.path.join(self.folder, "audit.jsonl")
        return subprocess.run([os.environ["FANFOLD_BIN"], "audit", "verify", log], check=False).returncode == 0


async def ask_python(base_url, markers):
    """Asks with openai-python; counts how it went."""
    client = openai.AsyncOpenAI(base_url=base_url, api_key="none", timeout=60)
    slots, ended = asyncio.Semaphore(AT_ONCE), collections.Counter()

    async def one(i, marker):
        messages = [{"role": "user", "content": marker}]
        async with slots:
            try:
                answer = await client.chat.completions.create(model="m", messages=messages, stream=i % 2 == 0)
                if i % 2 == 0:
                    async for _ in answer:
                        pass
                ended["answered"] += 1
            except openai.APIStatusError as error:
                ended[str(error.status_code)] += 1
            except Exception as error:  # noqa: BLE001: a cut shows itself in many ways
                ended[type(error).__name__] += 1

    await asyncio.gather(*(one(i, marker) for i, marker in enumerate(markers)))
    await client.close()
    return ended


async def ask_node(base_url, markers):
    """Asks with openai-node; counts how it went."""
    process = await asyncio.create_subprocess_exec(
        os.environ["NODE_BIN"], "repeats.js", base_url, str(AT_ONCE),
        cwd=os.environ["NODE_SUITE"], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate("\n".join(markers).encode())
    return collections.Counter(json.loads(out))


async def play(stage, count, world, world_port, redis):
    with tempfile.TemporaryDirectory() as folder:
        fanfold = Fanfold(folder, world_port, {"redis": redis, "timeout": "5s"} if stage == "killed" else "memory")
        await fanfold.start()
        link = await asyncio.start_server(world.link(fanfold.port, stage == "link"), "127.0.0.1", 0)
        base_url = f"http://127.0.0.1:{link.sockets[0].getsockname()[1]}/v1"
        killer = asyncio.create_task(fanfold.kill_again_and_again(world)) if stage == "killed" else None
        markers = [f"{stage}-{i}" for i in range(count)]
        half, began = count // 2, time.monotonic()
        python, node = await asyncio.gather(
            ask_python(base_url, markers[:half]), ask_node(base_url, markers[half:])
        )
        if killer:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
        # Calls that were left behind may still arrive.
        await asyncio.sleep(2)
        await fanfold.kill()
        link.close()
        sound = fanfold.audit_is_sound()
        downs = fanfold.logged("the store is down")
    twice = [marker for marker in markers if world.saved[marker] > 1]
    print(f"{stage}: {count} requests in {time.monotonic() - began:.0f} s, python {dict(python)}, node {dict(node)}")
    print(f"  saved once {sum(world.saved[m] == 1 for m in markers)}, more than once {len(twice)} {twice[:5]}, store down {downs}")
    answered = python["answered"] + node["answered"]
    # Of those that were killed in the middle, many end with the one error.
    enough = count // 50 if stage == "killed" else count // 2
    complete = python.total() + node.total() == count and answered > enough
    return complete and not twice and sound


async def start_redis(folder):
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder,
        stdout=asyncio.subprocess.DEVNULL,
    )
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return process, f"redis://127.0.0.1:{port}"
        except OSError:
            await asyncio.sleep(0.05)
    sys.exit("redis-server does not start")


async def main():
    print(f"seed {SEED}")
    world = World()
    server = await asyncio.start_server(world.serve, "127.0.0.1", 0)
    world_port = server.sockets[0].getsockname()[1]
    stages = {stage: STAGES[stage] for stage in sys.argv[1:]} or STAGES
    with tempfile.TemporaryDirectory() as folder:
        redis, url = await start_redis(folder) if "killed" in stages else (None, "")
        try:
            fine = [await play(stage, count, world, world_port, url) for stage, count in stages.items()]
        finally:
            if redis:
                redis.terminate()
                await redis.wait()
    print(f"cuts {dict(world.cuts)}, kills {world.kills}")
    sys.exit(0 if all(fine) else 1)


asyncio.run(main())
