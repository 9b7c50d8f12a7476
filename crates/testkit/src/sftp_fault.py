"""Stands between sshd and sftp-server, sees each packet, and fails as told.

argv: the directory with the rules, the program to run. A file there named "rule" holds: KIND NTH ACTION
(KIND a number or the name of an extension, NTH counted from when the rule was set, on each connection).
The first process that meets it takes the file away, so it is obeyed once. A file named "hide" lists extensions that the client does not get to see.
Actions: cut-before (ends without passing it on), cut-after (passes it on, waits for the answer, ends),
hang (answers nothing any more), fail (says "failure" without passing it on), spoil (cuts the file that
was opened last to half, then ends), undo (as cut-after, and removes what the link made).
"""
import ctypes, os, signal, struct, subprocess, sys, threading, time

PR_SET_PDEATHSIG = 1


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# Neither of us outlives the session, also when it ends while we hang.
parent = os.getppid()
end_with_parent()
if os.getppid() != parent:
    sys.exit(1)
rules, program = sys.argv[1], sys.argv[2:]
server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=end_with_parent)
lock = threading.Lock()
awaited = None
undo = None
counts = {}
current = None
last_open = None


def read_exact(stream, n):
    data = b""
    while len(data) < n:
        more = stream.read(n - len(data))
        if not more:
            end()
        data += more
    return data


def packet(stream):
    head = read_exact(stream, 4)
    return head, read_exact(stream, struct.unpack(">I", head)[0])


def end():
    server.kill()
    os._exit(0)


def text(body, at):
    n = struct.unpack(">I", body[at:at + 4])[0]
    return body[at + 4:at + 4 + n], at + 4 + n


def hidden(body):
    try:
        hide = open(os.path.join(rules, "hide")).read().split()
    except FileNotFoundError:
        return body
    kept, at = body[:5], 5
    while at < len(body):
        name, after = text(body, at)
        _, after = text(body, after)
        if name.decode() not in hide:
            kept += body[at:after]
        at = after
    return kept


def upwards():
    out = sys.stdout.buffer
    while True:
        head, body = packet(server.stdout)
        if body[0] == 2:
            body = hidden(body)
            head = struct.pack(">I", len(body))
        elif awaited is not None and body[1:5] == awaited:
            if undo is not None:
                os.unlink(undo)
            end()
        with lock:
            out.write(head + body)
            out.flush()


def due(kind):
    global current
    path = os.path.join(rules, "rule")
    try:
        with open(path) as file:
            wanted, nth, action = file.read().split()
            inode = os.fstat(file.fileno()).st_ino
    except (FileNotFoundError, ValueError):
        return None
    if current != inode:
        current = inode
        counts.clear()
    counts[kind] = counts.get(kind, 0) + 1
    if wanted != kind or int(nth) != counts[kind]:
        return None
    try:
        os.rename(path, path + "." + str(inode))
    except FileNotFoundError:
        return None
    return action


threading.Thread(target=upwards, daemon=True).start()
while True:
    head, body = packet(sys.stdin.buffer)
    kind = str(body[0])
    if body[0] == 200:
        kind = text(body, 5)[0].decode()
    if body[0] == 3 and struct.unpack(">I", body[text(body, 5)[1]:][:4])[0] & 8:
        last_open = text(body, 5)[0]
    action = due(kind)
    if action == "cut-before":
        end()
    elif action == "hang":
        time.sleep(3600)
    elif action == "fail":
        answer = b"\x65" + body[1:5] + struct.pack(">I", 4) + struct.pack(">I", 7) + b"Failure" + struct.pack(">I", 0)
        with lock:
            sys.stdout.buffer.write(struct.pack(">I", len(answer)) + answer)
            sys.stdout.buffer.flush()
        continue
    elif action == "spoil":
        os.truncate(last_open, os.stat(last_open).st_size // 2)
        end()
    elif action in ("cut-after", "undo"):
        if action == "undo":
            undo = text(body, text(body, text(body, 5)[1])[1])[0]
        awaited = body[1:5]
    server.stdin.write(head + body)
    server.stdin.flush()
