/* The Telegram channel: long polling, one thread for all chats of an account, and getMe every ten seconds. */
#include "standin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define TEXT_MAX 4087 /* characters of one message; longer answers are split there */

struct channel {
    const char *name;
    json_t *account;
};

/* Call one method of the Bot API; takes `parameters`. Returns the `result` (a new reference) or NULL. */
static json_t *call(json_t *account, const char *method, json_t *parameters)
{
    char *url = format("https://api.telegram.org/bot%s/%s", text_at(account, "bot_token", ""), method);
    char *body = json_dumps(parameters, JSON_COMPACT);
    struct reply reply = http_post(url, text_at(account, "proxy", NULL), NULL, body, 45);
    json_t *json = reply.status ? json_loads(reply.body, 0, NULL) : NULL;
    json_t *result = json_incref(at(json, "result"));
    if (!result)
        say("warning(telegram): %s failed: %s", method, text_at(json, "description", reply.status ? "?" : reply.body));
    json_decref(json);
    json_decref(parameters);
    free(reply.body);
    free(body);
    free(url);
    return result;
}

/* Exact match, case ignored and a leading @ dropped, with the name or the numeric id; "*" is everybody. */
static bool is_listed(json_t *list, const char *username, const char *id)
{
    json_t *entry;
    size_t i;
    json_array_foreach(list, i, entry) {
        const char *text = json_string_value(entry);
        if (!text)
            continue;
        text += *text == '@';
        if (strcmp(text, "*") == 0 || strcasecmp(text, username) == 0 || strcmp(text, id) == 0)
            return true;
    }
    return false;
}

static bool is_allowed(json_t *account, json_t *message, const char *username, const char *id)
{
    json_t *list = at(account, "allow_from");
    if (strcmp(text_at(message, "chat.type", "private"), "private") != 0) {
        const char *policy = text_at(account, "group_policy", "allowlist");
        if (strcmp(policy, "open") == 0)
            return true;
        if (strcmp(policy, "disabled") == 0)
            return false;
        if (at(account, "group_allow_from"))
            list = at(account, "group_allow_from");
    }
    return is_listed(list, username, id);
}

/* Send a text in as many messages as it needs, as HTML. */
static void send_text(json_t *account, json_t *message, const char *text)
{
    do {
        struct buf html = {0};
        buf_add(&html, "", 0);
        for (int characters = 0; *text; text++) {
            bool starts = (*text & 0xc0) != 0x80; /* the first byte of a character */
            if (starts && ++characters > TEXT_MAX)
                break;
            if (*text == '&')
                buf_printf(&html, "&amp;");
            else if (*text == '<')
                buf_printf(&html, "&lt;");
            else if (*text == '>')
                buf_printf(&html, "&gt;");
            else
                buf_add(&html, text, 1);
        }
        json_decref(call(account, "sendMessage",
                         json_pack("{sO ss ss s{sO sb}}", "chat_id", at(message, "chat.id"), "text", html.data,
                                   "parse_mode", "HTML", "reply_parameters", "message_id", at(message, "message_id"),
                                   "allow_sending_without_reply", 1)));
        free(html.data);
    } while (*text);
}

bool telegram_update(json_t *account, const char *name, json_t *update)
{
    json_t *message = at(update, "message");
    const char *text = text_at(message, "text", NULL);
    if (!text || !json_is_integer(at(message, "chat.id")))
        return false;
    char id[24];
    snprintf(id, sizeof id, "%ld", number_at(message, "from.id", 0));
    const char *username = text_at(message, "from.username", "");
    if (!is_allowed(account, message, username, id)) {
        say("warning(telegram): ignoring message from unauthorized user: username=%s, user_id=%s", username, id);
        return false;
    }
    sleep_ms(number_at(config, "messages.inbound.debounce_ms", 3000));
    char *session = format("telegram:%s:%ld", name, number_at(message, "chat.id", 0));
    bool ok;
    char *answer = agent_turn(session, text, &ok);
    send_text(account, message, answer);
    free(answer);
    free(session);
    return true;
}

static void *poll_forever(void *argument)
{
    struct channel *channel = argument;
    char *directory = format("%s/state/telegram", state_directory);
    char *path = format("%s/update-offset-%s.json", directory, channel->name);
    make_directories(directory);
    free(directory);
    char *saved = read_file(path, 1024);
    json_t *state = saved ? json_loads(saved, 0, NULL) : NULL;
    long offset = number_at(state, "offset", 0);
    json_decref(state);
    free(saved);

    json_decref(call(channel->account, "deleteWebhook", json_object()));
    json_decref(call(channel->account, "setMyCommands",
                     json_pack("{s[{ss ss}{ss ss}]}", "commands", "command", "new", "description", "Start a new session",
                               "command", "model", "description", "Show or switch the model")));
    for (;;) {
        json_t *updates = call(channel->account, "getUpdates",
                               json_pack("{sI si s[s]}", "offset", (json_int_t)offset, "timeout", 30, "allowed_updates",
                                         "message"));
        if (!updates) {
            sleep_ms(5000);
            continue;
        }
        json_t *update;
        size_t i;
        json_array_foreach(updates, i, update) {
            offset = number_at(update, "update_id", 0) + 1;
            char *text = format("{\"offset\":%ld}", offset);
            write_file(path, text);
            free(text);
            telegram_update(channel->account, channel->name, update);
        }
        json_decref(updates);
    }
    return NULL;
}

static void *watch_forever(void *argument)
{
    struct channel *channel = argument;
    for (;;) {
        json_decref(call(channel->account, "getMe", json_object()));
        sleep_ms(10000);
    }
    return NULL;
}

void telegram_start(void)
{
    const char *name;
    json_t *account;
    json_object_foreach(at(config, "channels.telegram.accounts"), name, account) {
        struct channel *channel = malloc(sizeof *channel);
        *channel = (struct channel){name, account};
        start_thread(poll_forever, channel);
        start_thread(watch_forever, channel);
    }
}
