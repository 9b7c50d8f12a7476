"""The part of Google Cloud Storage's XML API that a repository uses, in memory
(https://cloud.google.com/storage/docs/xml-api/overview): objects with generations, preconditions on them, ranges,
listings in pages, uploads in parts. Started by the tests on loopback: gcs_fake.py PORT BUCKET.
"""
import hashlib
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
lock = threading.Lock()
objects, uploads = {}, {}
counter = [0]


def number():
    counter[0] += 1
    return counter[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def split(self):
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        return unquote(bucket), unquote(name), parse_qs(parts.query, keep_blank_values=True)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status, body=b"", headers=(), length=None):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, str(value))
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code):
        self.answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def dispatch(self):
        body = self.body()
        bucket, name, query = self.split()
        if bucket != BUCKET:
            return self.error(404, "NoSuchBucket")
        with lock:
            return getattr(self, "on_" + self.command.lower())(name, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = dispatch

    def facts(self, stored):
        data, generation, modified = stored
        return [("ETag", f'"{hashlib.md5(data).hexdigest()}"'), ("x-goog-generation", generation),
                ("Last-Modified", formatdate(modified, usegmt=True))]

    def store(self, name, data):
        objects[name] = (data, number(), time.time())
        return objects[name]

    def on_put(self, name, query, body):
        if "uploadId" in query:
            parts = uploads.get(query["uploadId"][0])
            if parts is None:
                return self.error(404, "NoSuchUpload")
            parts[int(query["partNumber"][0])] = body
            return self.answer(200, headers=[("ETag", f'"{hashlib.md5(body).hexdigest()}"')])
        wanted = self.headers.get("x-goog-if-generation-match")
        found = objects[name][1] if name in objects else 0
        if wanted is not None and int(wanted) != found:
            return self.error(412, "PreconditionFailed")
        return self.answer(200, headers=self.facts(self.store(name, body)))

    def on_post(self, name, query, _body):
        if "uploads" in query:
            identity = f"upload-{number()}"
            uploads[identity] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{identity}</UploadId></InitiateMultipartUploadResult>"
            return self.answer(200, text.encode())
        parts = uploads.pop(query["uploadId"][0], None)
        if parts is None:
            return self.error(404, "NoSuchUpload")
        stored = self.store(name, b"".join(parts[n] for n in sorted(parts)))
        tag = self.facts(stored)[0][1].replace('"', "&quot;")
        text = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        return self.answer(200, text.encode(), headers=self.facts(stored)[1:2])

    def on_delete(self, name, query, _body):
        if "uploadId" in query:
            uploads.pop(query["uploadId"][0], None)
            return self.answer(204)
        if objects.pop(name, None) is None:
            return self.error(404, "NoSuchKey")
        return self.answer(204)

    def on_head(self, name, _query, _body):
        if name not in objects:
            return self.error(404, "NoSuchKey")
        return self.answer(200, headers=self.facts(objects[name]), length=len(objects[name][0]))

    def on_get(self, name, query, _body):
        if not name:
            return self.listing({key: values[0] for key, values in query.items()})
        if name not in objects:
            return self.error(404, "NoSuchKey")
        data = objects[name][0]
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(200, data, self.facts(objects[name]))
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or len(data)), len(data) - 1)
        if first >= len(data):
            return self.error(416, "InvalidRange")
        where = ("Content-Range", f"bytes {first}-{last}/{len(data)}")
        return self.answer(206, data[first:last + 1], [*self.facts(objects[name]), where])

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        contents, prefixes, token = [], [], None
        for name in sorted(n for n in objects if n.startswith(prefix)):
            below, cut, _ = name[len(prefix):].partition(delimiter) if delimiter else (name, "", "")
            shown = prefix + below + cut if cut else name
            if shown <= after or shown in prefixes:
                continue
            if len(contents) + len(prefixes) == PAGE:
                token = last
                break
            last = shown
            (prefixes if cut else contents).append(shown)
        entries = "".join(self.entry(name) for name in contents)
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in prefixes)
        more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
        return self.answer(200, f"<ListBucketResult>{entries}{more}</ListBucketResult>".encode())

    def entry(self, name):
        data, _, modified = objects[name]
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(modified))
        return (f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size><LastModified>{at}</LastModified>"
                f"<ETag>{hashlib.md5(data).hexdigest()}</ETag></Contents>")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


BUCKET = sys.argv[2]
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
