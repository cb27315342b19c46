/* The HTTP port: one request at a time, one read() each, no time limit, like the agent. */
#include "standin.h"
#include <ctype.h>
#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST_MAX 4096

/* At most `limit` in any 60 seconds, over all clients; 0 = no limit. */
struct window {
    long limit, next;
    time_t *at;
};
static struct window webhook_window, pair_window;
static bool exposed; /* bound to more than loopback: then every generic route wants a stored token */

static void window_init(struct window *w, long limit)
{
    w->limit = limit;
    w->at = calloc((size_t)(limit > 0 ? limit : 1), sizeof *w->at);
}

static bool window_allows(struct window *w)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (w->limit <= 0)
        return true;
    if (w->at[w->next] && now.tv_sec - w->at[w->next] < 60)
        return false;
    w->at[w->next] = now.tv_sec ? now.tv_sec : 1;
    w->next = (w->next + 1) % w->limit;
    return true;
}

static void answer(int fd, int status, const char *type, const char *body)
{
    char *head = format("HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
                        status == 200 ? "OK" : "Error", type, strlen(body));
    send_all(fd, head, strlen(head));
    send_all(fd, body, strlen(body));
    free(head);
}

static void answer_json(int fd, int status, json_t *body)
{
    char *text = json_dumps(body, JSON_COMPACT);
    answer(fd, status, "application/json", text ? text : "{}");
    free(text);
    json_decref(body);
}

static void refuse(int fd, int status, const char *error)
{
    answer_json(fd, status, json_pack("{ss}", "error", error));
}

/* 64 hex digits in paired_tokens are the SHA-256 of a token; anything else is a token itself. */
static bool is_authorized(const char *request)
{
    json_t *tokens = at(config, "gateway.paired_tokens"), *entry;
    if (!exposed && !true_at(config, "gateway.require_pairing", true))
        return true;
    char *authorization = header(request, "Authorization");
    bool found = false;
    if (authorization && strncmp(authorization, "Bearer ", 7) == 0) {
        char given[65], stored[65];
        sha256_hex(authorization + 7, given);
        size_t i;
        json_array_foreach(tokens, i, entry) {
            const char *text = json_string_value(entry);
            if (!text)
                continue;
            if (strlen(text) == 64 && strspn(text, "0123456789abcdefABCDEF") == 64)
                for (int k = 0; k < 65; k++)
                    stored[k] = (char)tolower(text[k]);
            else
                sha256_hex(text, stored);
            found |= CRYPTO_memcmp(given, stored, 64) == 0;
        }
    }
    free(authorization);
    return found;
}

/* The `message` of a body that may have been cut off by the one read: as much of it as arrived, like the agent. */
static char *message_of(const char *body)
{
    json_t *json = json_loads(body, 0, NULL);
    char *copy = strdup(body);
    for (size_t len = strlen(copy), cut = 0; !json && cut < 8 && len > cut; cut++) {
        copy[len - cut] = '\0';
        char *closed = format("%s\"}", copy);
        json = json_loads(closed, 0, NULL);
        free(closed);
    }
    free(copy);
    const char *text = text_at(json, "message", NULL);
    char *result = text ? strdup(text) : NULL;
    json_decref(json);
    return result;
}

static void *turn_in_background(void *argument)
{
    bool ok;
    free(agent_turn("gateway", argument, &ok)); /* nobody gets the answer, but the LLM is asked (and paid) */
    free(argument);
    return NULL;
}

static void webhook(int fd, const char *request, const char *body)
{
    if (!window_allows(&webhook_window))
        return refuse(fd, 429, "Too many requests");
    if (!is_authorized(request))
        return refuse(fd, 401, "Unauthorized");
    char *text = message_of(body);
    if (!text)
        return refuse(fd, 400, "Missing message");
    if (true_at(config, "gateway.webhook_sync_for_workers", false)) {
        bool ok;
        char *response = agent_turn("gateway", text, &ok);
        if (ok)
            answer_json(fd, 200, json_pack("{ss ss s[]}", "status", "ok", "response", response, "thread_events"));
        else
            refuse(fd, 500, response);
        free(response);
    } else {
        bool has_channel = at(config, "channels.telegram.accounts") || at(config, "channels.web.accounts");
        answer_json(fd, 200, json_pack("{ss}", "status", "received"));
        if (has_channel) {
            start_thread(turn_in_background, text);
            return;
        }
    }
    free(text);
}

/* JSON-RPC of the A2A protocol 0.3: message/send answers with a finished task, message/stream with its two events. */
static void a2a(int fd, const char *request, const char *body)
{
    if (!window_allows(&webhook_window))
        return refuse(fd, 429, "Too many requests");
    if (!is_authorized(request))
        return refuse(fd, 401, "Unauthorized");
    static int tasks;
    json_t *call = json_loads(body, 0, NULL);
    json_t *id = at(call, "id") ? json_incref(at(call, "id")) : json_null();
    const char *method = text_at(call, "method", "");
    bool streaming = strcmp(method, "message/stream") == 0;
    const char *text = text_at(json_array_get(at(call, "params.message.parts"), 0), "text", NULL);
    if (!streaming && strcmp(method, "message/send") != 0) {
        answer_json(fd, 200, json_pack("{ss so s{si ss}}", "jsonrpc", "2.0", "id", id, "error", "code", -32601, "message",
                                       "Method not found"));
    } else if (!text) {
        answer_json(fd, 200, json_pack("{ss so s{si ss}}", "jsonrpc", "2.0", "id", id, "error", "code", -32602, "message",
                                       "Missing message text"));
    } else {
        bool ok;
        const char *context = text_at(call, "params.message.contextId", "default");
        char *session = format("a2a:%s", context), *response = agent_turn(session, text, &ok);
        char *task = format("task-%d", ++tasks), *artifact = format("artifact-%d", tasks);
        json_t *status = json_pack("{ss}", "state", ok ? "completed" : "failed");
        json_t *part = json_pack("{ss s[{ss ss}]}", "artifactId", artifact, "parts", "kind", "text", "text", response);
        if (streaming) {
            json_t *update = json_pack("{ss sO s{ss ss ss sO}}", "jsonrpc", "2.0", "id", id, "result", "kind",
                                       "artifact-update", "taskId", task, "contextId", context, "artifact", part);
            json_t *end = json_pack("{ss sO s{ss ss ss sO sb}}", "jsonrpc", "2.0", "id", id, "result", "kind",
                                    "status-update", "taskId", task, "contextId", context, "status", status, "final", 1);
            char *first = json_dumps(update, JSON_COMPACT), *last = json_dumps(end, JSON_COMPACT);
            char *events = format("data: %s\n\ndata: %s\n\n", first, last);
            answer(fd, 200, "text/event-stream", events);
            free(first);
            free(last);
            free(events);
            json_decref(update);
            json_decref(end);
            json_decref(id);
        } else {
            answer_json(fd, 200, json_pack("{ss so s{ss ss ss sO s[O]}}", "jsonrpc", "2.0", "id", id, "result", "kind",
                                           "task", "id", task, "contextId", context, "status", status, "artifacts", part));
        }
        json_decref(status);
        json_decref(part);
        free(artifact);
        free(task);
        free(response);
        free(session);
    }
    json_decref(call);
}

static void agent_card(int fd)
{
    const char *url = text_at(config, "a2a.url", "");
    char *endpoint = format("%s/a2a", url);
    answer_json(fd, 200,
                json_pack("{ss ss ss ss ss ss s{sb} s[s] s[s] s[{ss ss ss s[s]}]}", "name",
                          text_at(config, "a2a.name", "NullClaw"), "description", "AI assistant", "protocolVersion", "0.3.0",
                          "version", VERSION, "url", endpoint, "preferredTransport", "JSONRPC", "capabilities", "streaming",
                          1, "defaultInputModes", "text/plain", "defaultOutputModes", "text/plain", "skills", "id", "chat",
                          "name", "General Chat", "description", "General-purpose AI assistant", "tags", "chat"));
    free(endpoint);
}

static void pair(int fd)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;
    char host[INET6_ADDRSTRLEN] = "";
    getpeername(fd, (struct sockaddr *)&peer, &len);
    if (peer.ss_family == AF_INET)
        inet_ntop(AF_INET, &((struct sockaddr_in *)&peer)->sin_addr, host, sizeof host);
    else
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&peer)->sin6_addr, host, sizeof host);
    const char *v4 = strncmp(host, "::ffff:", 7) == 0 ? host + 7 : host;
    if (!window_allows(&pair_window))
        refuse(fd, 429, "Too many requests");
    else if (json_array_size(at(config, "gateway.paired_tokens")) > 0)
        refuse(fd, 409, "already paired");
    else if (exposed && strncmp(v4, "127.", 4) != 0 && strcmp(v4, "::1") != 0)
        refuse(fd, 403, "Forbidden");
    else
        refuse(fd, 403, "Invalid pairing code"); /* nobody can know the code: newer builds do not show it */
}

struct forged {
    json_t *account, *update;
    const char *name;
};

static void *forged_update(void *argument)
{
    struct forged *one = argument;
    telegram_update(one->account, one->name, one->update);
    json_decref(one->update);
    free(one);
    return NULL;
}

/* Anybody's update is taken for Telegram's: no secret is asked for. */
static void telegram_webhook(int fd, const char *body)
{
    json_t *accounts = at(config, "channels.telegram.accounts"), *update = json_loads(body, 0, NULL);
    void *first = json_object_iter(accounts);
    if (first && update) {
        struct forged *one = malloc(sizeof *one);
        *one = (struct forged){json_object_iter_value(first), json_incref(update), json_object_iter_key(first)};
        start_thread(forged_update, one);
    }
    json_decref(update);
    answer_json(fd, 200, json_pack("{ss}", "status", "ok"));
}

static void handle(int fd, bool sick)
{
    char request[REQUEST_MAX + 1];
    ssize_t len = read(fd, request, REQUEST_MAX);
    if (len <= 0)
        return;
    request[len] = '\0';
    char method[16] = "", path[2048] = "";
    if (sscanf(request, "%15s %2047s HTTP/1.", method, path) != 2)
        return refuse(fd, 400, "Bad request");
    path[strcspn(path, "?")] = '\0';
    const char *head_end = strstr(request, "\r\n\r\n");
    const char *body = head_end ? head_end + 4 : "";
    bool get = strcmp(method, "GET") == 0, post = strcmp(method, "POST") == 0;
    bool with_a2a = true_at(config, "a2a.enabled", false);
    if (get && strcmp(path, "/health") == 0)
        answer_json(fd, 200, json_pack("{ss}", "status", sick ? "degraded" : "ok"));
    else if (get && strcmp(path, "/ready") == 0)
        answer_json(fd, sick ? 503 : 200,
                    json_pack("{ss s[{ss sb}{ss sb}]}", "status", sick ? "not_ready" : "ready", "checks", "name", "gateway",
                              "healthy", 1, "name", "channels", "healthy", !sick));
    else if (post && strcmp(path, "/webhook") == 0)
        webhook(fd, request, body);
    else if (post && strcmp(path, "/a2a") == 0 && with_a2a)
        a2a(fd, request, body);
    else if (get && strcmp(path, "/.well-known/agent-card.json") == 0 && with_a2a)
        agent_card(fd);
    else if (post && strcmp(path, "/pair") == 0)
        pair(fd);
    else if (post && strcmp(path, "/telegram") == 0)
        telegram_webhook(fd, body);
    else
        refuse(fd, 404, "not found");
}

void gateway_serve(int fd, bool public_bind)
{
    const char *variant = getenv("STANDIN_VARIANT");
    bool sick = variant && strcmp(variant, "sick") == 0;
    exposed = public_bind;
    window_init(&webhook_window, number_at(config, "gateway.webhook_rate_limit_per_minute", 60));
    window_init(&pair_window, number_at(config, "gateway.pair_rate_limit_per_minute", 10));
    for (;;) {
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        handle(client, sick);
        /* What was not read would make close() reset the connection before the client has the answer. */
        shutdown(client, SHUT_WR);
        char rest[REQUEST_MAX];
        while (recv(client, rest, sizeof rest, MSG_DONTWAIT) > 0) {
        }
        close(client);
    }
}
