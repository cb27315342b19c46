/* Configuration, sessions and the conversation with the LLM. */
#include "standin.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONFIG_MAX (64 * 1024)
#define HISTORY_MAX 20 /* messages kept of each session */
#define SHELL_OUTPUT_MAX (16 * 1024)

json_t *config;
char *state_directory, *workspace, *config_path;
static char *completions_url, *provider, *model, *api_key;
static json_t *sessions; /* session -> list of {role, content} */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards sessions, model and the config file */

/* Plain http is for this machine and private networks only, and only by literal address or local name. */
static bool is_local_host(const char *host, size_t len)
{
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)len, host);
    struct in_addr address;
    if (inet_pton(AF_INET, name, &address) == 1) {
        uint32_t ip = ntohl(address.s_addr);
        return ip >> 24 == 10 || ip >> 24 == 127 || ip >> 20 == 0xac1 || ip >> 16 == 0xc0a8;
    }
    const char *dot = strrchr(name, '.');
    return strcmp(name, "localhost") == 0 || (dot && (!strcmp(dot, ".localhost") || !strcmp(dot, ".local")));
}

static void choose_provider(void)
{
    const char *primary = text_at(config, "agents.defaults.model.primary", "");
    const char *slash = strchr(primary, '/'); /* the first one: "custom:http://gw/x" is cut inside its URL */
    const char *wanted = getenv("NULLCLAW_PROVIDER"), *wanted_model = getenv("NULLCLAW_MODEL");
    if (!slash && !(wanted && wanted_model))
        die("No default model configured. Set agents.defaults.model.primary in ~/.nullclaw/config.json or run "
            "nullclaw onboard.");
    provider = wanted ? strdup(wanted) : strndup(primary, (size_t)(slash - primary));
    model = strdup(wanted_model ? wanted_model : slash + 1);

    json_t *entry = json_object_get(at(config, "models.providers"), provider);
    const char *base = text_at(entry, "base_url", "");
    if (strcmp(provider, "openrouter") == 0)
        base = "https://openrouter.ai/api/v1"; /* its base_url is ignored */
    else if (strncmp(provider, "custom:", 7) == 0)
        base = provider + 7;
    const char *host = strncmp(base, "http://", 7) == 0 ? base + 7 : NULL;
    if (host && !is_local_host(host, strcspn(host, ":/")))
        die("Config error: base_url of provider %s must use https:// (http:// is allowed for local and private hosts "
            "only).", provider);
    completions_url = format("%s/chat/completions", base);

    char *variable = format("%s_API_KEY", provider);
    for (char *c = variable; *c; c++)
        *c = *c >= 'a' && *c <= 'z' ? *c - 32 : *c;
    const char *key = text_at(entry, "api_key", getenv(variable));
    free(variable);
    if (!key)
        key = getenv("NULLCLAW_API_KEY");
    api_key = strdup(key ? key : "");
}

void config_load(void)
{
    const char *home = getenv("NULLCLAW_HOME"), *user_home = getenv("HOME");
    state_directory = home ? strdup(home) : format("%s/.nullclaw", user_home ? user_home : "");
    config_path = format("%s/config.json", state_directory);
    char *text = read_file(config_path, CONFIG_MAX);
    json_error_t error;
    config = text ? json_loads(text, 0, &error) : NULL;
    if (text && !config)
        say("Warning: failed to parse config.json: UnexpectedEndOfInput");
    free(text);
    const char *wanted = getenv("NULLCLAW_WORKSPACE");
    workspace = wanted ? strdup(wanted) : format("%s/workspace", state_directory);
    make_directories(workspace);
    if (chdir(workspace) != 0 || access(workspace, W_OK) != 0)
        die("error: Unexpected"); /* what the agent says about a workspace that is not writable */
}

void agent_load(void)
{
    config_load();
    if (at(config, "default_provider"))
        die("Config error: top-level default_provider is not supported. Set agents.defaults.model.primary instead.");
    if (!true_at(config, "secrets.encrypt", true))
        die("Config error: secrets.encrypt=false is not supported.");
    choose_provider();
    /* The real one keeps talks in its SQLite database; what counts for a host is that chats are on this disk, readable. */
    mcp_start();
    json_error_t error;
    char *text = strcmp(text_at(config, "memory.backend", "markdown"), "sqlite") == 0 ? read_file("memory.json", 1 << 20) : NULL;
    sessions = text ? json_loads(text, 0, &error) : NULL;
    free(text);
    if (!json_is_object(sessions))
        sessions = json_object();
}

static json_t *message(const char *role, const char *content)
{
    return json_pack("{ss ss*}", "role", role, "content", content);
}

/* What the LLM is sent of this session and one more user message; NULL if that is not UTF-8. */
static json_t *conversation(const char *session, const char *text)
{
    char *recalled = memory_recall(text), *whole = format("%s%s", recalled ? recalled : "", text);
    json_t *asked = message("user", whole);
    free(recalled);
    free(whole);
    if (!asked)
        return NULL;
    char *prompt = prompt_of(session);
    json_t *messages = json_pack("[o]", message("system", prompt));
    free(prompt);
    pthread_mutex_lock(&lock);
    json_array_extend(messages, json_object_get(sessions, session));
    pthread_mutex_unlock(&lock);
    json_array_append_new(messages, asked);
    return messages;
}

static char *request_body(json_t *messages)
{
    pthread_mutex_lock(&lock);
    json_t *body = json_pack("{ss sO sf si sb ss s[{ss s{ss ss s{ss s{s{ss}}}}}]}", "model", model, "messages", messages,
                             "temperature", 0.7, "max_tokens", (int)number_at(config, "max_tokens", 8192), "stream", 0,
                             "tool_choice", "auto", "tools", "type", "function", "function", "name", "shell",
                             "description", "Run a command", "parameters", "type", "object", "properties", "command",
                             "type", "string");
    pthread_mutex_unlock(&lock);
    json_array_extend(json_object_get(body, "tools"), mcp_tools);
    char *dumped = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return dumped;
}

enum outcome { ANSWERED, UNREACHABLE, RATE_LIMITED, UNAUTHORIZED, REFUSED };

/* One call of the LLM. Only the JSON is looked at, never the HTTP status or Retry-After, like the agent. */
static enum outcome ask_once(const char *body, char **answer, json_t **calling)
{
    long seconds = number_at(config, "agent.message_timeout_secs", 600);
    struct reply reply = http_post(completions_url, NULL, api_key, body, seconds);
    json_t *json = reply.status ? json_loads(reply.body, 0, NULL) : NULL;
    enum outcome outcome = reply.status ? REFUSED : UNREACHABLE;
    json_t *said = at(json_array_get(at(json, "choices"), 0), "message");
    const char *content = text_at(said, "content", NULL);
    json_t *error = at(json, "error");
    if (error) {
        long code = number_at(error, "code", 0);
        outcome = code == 429 || code == 408 ? RATE_LIMITED : code == 401 ? UNAUTHORIZED : REFUSED;
    } else if (json_array_size(json_object_get(said, "tool_calls"))) {
        *calling = json_incref(said);
        outcome = ANSWERED;
    } else if (content) {
        *answer = strdup(content);
        outcome = ANSWERED;
    }
    if (outcome != ANSWERED)
        say("warning(agent): provider %s failed: %s", provider, reply.status ? "error answer" : reply.body);
    json_decref(json);
    free(reply.body);
    return outcome;
}

/* All tries for one message: (provider_retries + 1) twice over, and another round of compaction after a 401. */
static enum outcome ask(const char *body, char **answer, json_t **calling)
{
    long retries = number_at(config, "reliability.provider_retries", 2);
    long backoff = number_at(config, "reliability.provider_backoff_ms", 500);
    enum outcome outcome = UNREACHABLE;
    for (int round = 0; round < (outcome == UNAUTHORIZED ? 3 : 2); round++) {
        for (long attempt = 0; attempt <= retries; attempt++) {
            outcome = ask_once(body, answer, calling);
            if (outcome == ANSWERED)
                return outcome;
            if (attempt < retries)
                sleep_ms(backoff << attempt);
        }
    }
    if (retries > 0 && (outcome == REFUSED || outcome == UNAUTHORIZED))
        *answer = strdup("All configured providers failed for this request. Check model/provider compatibility and "
                         "credentials.");
    else
        *answer = strdup("An error occurred. Try again or /new for a fresh session.");
    return outcome;
}

static void remember(const char *session, const char *text, const char *answer)
{
    pthread_mutex_lock(&lock);
    json_t *list = json_object_get(sessions, session);
    if (!list) {
        list = json_array();
        json_object_set_new(sessions, session, list);
    }
    json_array_append_new(list, message("user", text));
    json_array_append_new(list, message("assistant", answer));
    while (json_array_size(list) > HISTORY_MAX)
        json_array_remove(list, 0);
    if (strcmp(text_at(config, "memory.backend", "markdown"), "sqlite") == 0) {
        char *dumped = json_dumps(sessions, JSON_COMPACT);
        write_file("memory.json", dumped);
        free(dumped);
    }
    pthread_mutex_unlock(&lock);
}

static void forget(const char *session)
{
    pthread_mutex_lock(&lock);
    json_object_del(sessions, session);
    pthread_mutex_unlock(&lock);
    prompt_forget(session);
}

/* `/model x`: any user may, and the agent even writes it into its configuration if it can. */
static char *switch_model(const char *wanted)
{
    pthread_mutex_lock(&lock);
    free(model);
    model = strdup(wanted);
    bool persisted = false;
    int fd = open(config_path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        json_t *defaults = at(config, "agents.defaults.model");
        json_object_set_new(defaults, "primary", json_sprintf("%s/%s", provider, wanted));
        persisted = ftruncate(fd, 0) == 0 && json_dumpfd(config, fd, JSON_INDENT(2)) == 0;
        close(fd);
    }
    pthread_mutex_unlock(&lock);
    return format("Switched to model: %s%s", wanted,
                  persisted ? "" : "\nWarning: could not persist model to config.json (Unexpected)");
}

/* `!sh command`: stands for the shell tool, without the LLM in between. The last line is `[exit N]`. */
static char *run_shell(const char *command)
{
    char *grouped = format("{ %s\n} 2>&1", command);
    FILE *pipe = popen(grouped, "re");
    free(grouped);
    if (!pipe)
        return format("cannot run a shell: %s", strerror(errno));
    struct buf output = {0};
    char block[1024];
    size_t n;
    while ((n = fread(block, 1, sizeof block, pipe)) > 0)
        if (output.len < SHELL_OUTPUT_MAX)
            buf_add(&output, block, n);
    int status = pclose(pipe);
    for (size_t i = 0; i < output.len; i++) /* an answer is text */
        if ((unsigned char)output.data[i] >= 0x80 || output.data[i] == '\0')
            output.data[i] = '?';
    buf_printf(&output, "[exit %d]", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return output.data;
}

/* Asks the LLM, and does what it asks for, until it answers; false if it failed. */
static bool converse(json_t *messages, char **answer)
{
    for (long left = number_at(config, "agent.max_tool_iterations", 1000); left > 0; left--) {
        json_t *calling = NULL, *call;
        char *body = request_body(messages);
        bool answered = ask(body, answer, &calling) == ANSWERED;
        free(body);
        if (!calling)
            return answered;
        json_array_append_new(messages, calling);
        size_t i;
        json_array_foreach (json_object_get(calling, "tool_calls"), i, call) {
            json_t *arguments = json_loads(text_at(call, "function.arguments", "{}"), 0, NULL);
            char *said = mcp_call(text_at(call, "function.name", ""), arguments ? arguments : json_null());
            json_array_append_new(messages, json_pack("{ss ss ss}", "role", "tool", "tool_call_id", text_at(call, "id", ""),
                                                      "content", said));
            free(said);
            json_decref(arguments);
        }
    }
    *answer = strdup("The stand-in has called as many tools as it may.");
    return true;
}

char *agent_turn(const char *session, const char *text, bool *ok)
{
    *ok = true;
    if (strncmp(text, "!sh ", 4) == 0)
        return run_shell(text + 4);
    if (strncmp(text, "/model ", 7) == 0)
        return switch_model(text + 7);
    if (strcmp(text, "/new") == 0 || strcmp(text, "/reset") == 0) {
        forget(session);
        return strdup("Session restarted.");
    }
    char *answer = NULL;
    json_t *messages = conversation(session, text);
    *ok = messages && converse(messages, &answer);
    json_decref(messages);
    if (*ok)
        remember(session, text, answer);
    return answer ? answer : strdup("An error occurred. Try again or /new for a fresh session.");
}
