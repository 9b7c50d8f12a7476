"""A mail server for tests: TLS is required, so is a password; what it takes is written as one line of JSON each."""

import json
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

port, taken, certificate, key, how, user, password, refuses = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


class Handler:
    left = int(refuses)

    async def handle_DATA(self, server, session, envelope):
        if Handler.left > 0:
            Handler.left -= 1
            return "451 4.3.0 try again later"
        mail = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "text": envelope.content.decode("utf-8", "replace"),
            "encrypted": session.ssl is not None or how == "wrapped",
            "user": session.auth_data.login.decode() if session.auth_data else None,
        }
        with open(taken, "a") as file:
            file.write(json.dumps(mail) + "\n")
        return "250 taken"


def allowed(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and data.login == user.encode() and data.password == password.encode()
    # One that is not handled here is refused by the server itself, with 535.
    return AuthResult(success=good, handled=good, auth_data=data if good else None)


options = dict(hostname="127.0.0.1", port=int(port), authenticator=allowed, auth_required=True)
if how == "wrapped":
    options.update(ssl_context=context, auth_require_tls=False)
else:
    options.update(tls_context=context, require_starttls=True)
Controller(Handler(), **options).start()
threading.Event().wait()
