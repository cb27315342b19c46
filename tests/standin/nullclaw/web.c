/* The web channel: a WebSocket on its own port, one thread per connection. */
#include "standin.h"
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAME_MAX (64 * 1024)
#define PAIRING_CODE "123456" /* fixed in the tested build; `message_auth_mode: token` has no pairing at all */

struct web {
    const char *token, *path;
    bool pairing, open; /* open: bound to loopback, where the upgrade asks for no token */
    int fd;             /* of the listener, or of one connection */
};

static bool read_all(int fd, unsigned char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = read(fd, data, len);
        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

static void send_frame(int fd, int opcode, const char *data, size_t len)
{
    unsigned char head[4] = {(unsigned char)(0x80 | opcode), (unsigned char)(len < 126 ? len : 126)};
    if (len >= 126) {
        head[2] = (unsigned char)(len >> 8);
        head[3] = (unsigned char)len;
    }
    send_all(fd, (char *)head, len < 126 ? 2 : 4);
    send_all(fd, data, len);
}

static void send_event(int fd, const char *type, const char *session, json_t *payload)
{
    json_t *event = json_pack("{si ss ss so}", "v", 1, "type", type, "session_id", session, "payload", payload);
    char *text = json_dumps(event, JSON_COMPACT);
    send_frame(fd, 1, text, strlen(text) < FRAME_MAX ? strlen(text) : 0);
    free(text);
    json_decref(event);
}

/* The access token of a paired client: checked without being stored, so it survives a restart as the agent's does. */
static char *access_token(const char *secret, const char *client)
{
    unsigned char mac[32];
    HMAC(EVP_sha256(), secret, (int)strlen(secret), (const unsigned char *)client, strlen(client), mac, NULL);
    struct buf token = {0};
    buf_printf(&token, "%s.", client);
    for (int i = 0; i < 32; i++)
        buf_printf(&token, "%02x", mac[i]);
    return token.data;
}

static bool is_access_token(const char *secret, const char *token)
{
    char *client = strndup(token, strcspn(token, "."));
    char *expected = access_token(secret, client);
    bool good = strcmp(token, expected) == 0;
    free(expected);
    free(client);
    return good;
}

static void on_event(struct web *web, const char *session, json_t *event)
{
    const char *type = text_at(event, "type", ""), *text = text_at(event, "payload.content", NULL);
    session = text_at(event, "session_id", session);
    if (strcmp(type, "pairing_request") == 0 && web->pairing) {
        if (strcmp(text_at(event, "payload.pairing_code", ""), PAIRING_CODE) != 0)
            return send_event(web->fd, "error", session, json_pack("{ss}", "message", "invalid pairing code"));
        char *client = format("ui-%08lx", random()), *token = access_token(web->token, client);
        send_event(web->fd, "pairing_result", session,
                   json_pack("{ss ss sb}", "access_token", token, "client_id", client, "e2e_required", 0));
        free(token);
        free(client);
    } else if (strcmp(type, "user_message") == 0 && text) {
        if (web->pairing && !is_access_token(web->token, text_at(event, "payload.access_token", "")))
            return send_event(web->fd, "error", session, json_pack("{ss}", "message", "unauthorized"));
        bool ok;
        char *key = format("web:%s", session), *answer = agent_turn(key, text, &ok);
        send_event(web->fd, "assistant_final", session,
                   json_pack("{ss}", "content", ok ? answer : "An error occurred. Try again."));
        free(answer);
        free(key);
    }
}

/* Frames until the peer closes; fragments are refused, as short chat messages have none. */
static void converse(struct web *web, const char *session)
{
    for (;;) {
        unsigned char head[2], extended[2], mask[4];
        if (!read_all(web->fd, head, 2))
            return;
        size_t len = head[1] & 0x7f;
        if (len == 126) {
            if (!read_all(web->fd, extended, 2))
                return;
            len = (size_t)extended[0] << 8 | extended[1];
        }
        if (!(head[0] & 0x80) || !(head[1] & 0x80) || len == 127 || !read_all(web->fd, mask, 4))
            return;
        char *data = calloc(1, len + 1);
        if (!read_all(web->fd, (unsigned char *)data, len)) {
            free(data);
            return;
        }
        for (size_t i = 0; i < len; i++)
            data[i] = (char)(data[i] ^ mask[i % 4]);
        int opcode = head[0] & 0x0f;
        if (opcode == 9)
            send_frame(web->fd, 10, data, len);
        if (opcode == 8)
            send_frame(web->fd, 8, data, len);
        json_t *event = opcode == 1 ? json_loads(data, 0, NULL) : NULL;
        if (event)
            on_event(web, session, event);
        json_decref(event);
        free(data);
        if (opcode == 8)
            return;
    }
}

/* The upgrade: the right path, and the token as `?token=` or bearer token; anything wrong is HTTP 400, like the agent. */
static char *upgrade(struct web *web)
{
    char request[4097], target[2048] = "";
    ssize_t len = read(web->fd, request, sizeof request - 1);
    request[len > 0 ? len : 0] = '\0';
    sscanf(request, "GET %2047s HTTP/1.1", target);
    char *key = header(request, "Sec-WebSocket-Key"), *bearer = header(request, "Authorization");
    char *token = query_parameter(target, "token"), *session = query_parameter(target, "session_id");
    const char *given = token ? token : bearer && strncmp(bearer, "Bearer ", 7) == 0 ? bearer + 7 : "";
    bool good = key && strcspn(target, "?") == strlen(web->path) && strncmp(target, web->path, strlen(web->path)) == 0 &&
                (web->open || (*web->token && strcmp(given, web->token) == 0));
    if (good) {
        unsigned char digest[20], accept[32];
        char *text = format("%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
        EVP_Digest(text, strlen(text), digest, NULL, EVP_sha1(), NULL);
        EVP_EncodeBlock(accept, digest, 20);
        free(text);
        text = format("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Accept: %s\r\n\r\n",
                      accept);
        send_all(web->fd, text, strlen(text));
        free(text);
        if (!session)
            session = strdup("default");
    } else {
        const char *refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        send_all(web->fd, refusal, strlen(refusal));
        free(session);
        session = NULL;
    }
    free(token);
    free(bearer);
    free(key);
    return session;
}

static void *serve_client(void *argument)
{
    struct web *web = argument;
    char *session = upgrade(web);
    if (session)
        converse(web, session);
    free(session);
    close(web->fd);
    free(web);
    return NULL;
}

static void *accept_forever(void *argument)
{
    struct web *listener = argument;
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        struct web *client = malloc(sizeof *client);
        *client = *listener;
        client->fd = fd;
        start_thread(serve_client, client);
    }
    return NULL;
}

void web_start(void)
{
    const char *name;
    json_t *account;
    json_object_foreach(at(config, "channels.web.accounts"), name, account) {
        const char *host = text_at(account, "listen", "127.0.0.1");
        const char *token = getenv("NULLCLAW_WEB_TOKEN");
        if (!token)
            token = getenv("NULLCLAW_GATEWAY_TOKEN");
        char *port = format("%ld", number_at(account, "port", 32123));
        struct web *web = malloc(sizeof *web);
        *web = (struct web){
            .token = text_at(account, "auth_token", token ? token : ""),
            .path = text_at(account, "path", "/ws"),
            .pairing = strcmp(text_at(account, "message_auth_mode", "pairing"), "token") != 0,
            .open = strncmp(host, "127.", 4) == 0 || strcmp(host, "localhost") == 0,
            .fd = listen_on(host, port),
        };
        free(port);
        start_thread(accept_forever, web);
    }
}
