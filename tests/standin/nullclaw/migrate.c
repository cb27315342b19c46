/* `nullclaw migrate openclaw`: notes of another agent's workspace become memories, like with the agent. What it reads,
   how it names what has no name, what it does about what it has already, and that it takes a configuration over the
   bot's own if it finds one beside the workspace, was read in the agent's source. */
#include "standin.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NOTE_MAX (1024 * 1024)

static json_t *entries; /* list of {key, content, category} */
static json_t *seen;    /* keys of what came from text, which comes before what a database says */

static void add(const char *key, const char *content, const char *category)
{
    json_t *entry = json_pack("{ss ss ss}", "key", key, "content", content, "category", category);
    if (entry) {
        json_array_append_new(entries, entry);
        json_object_set_new(seen, key, json_true());
    }
}

static char *trimmed(char *text)
{
    text += strspn(text, " \t\r");
    for (size_t len = strlen(text); len && strchr(" \t\r", text[len - 1]); len--)
        text[len - 1] = '\0';
    return text;
}

/* One entry for each line that is no heading: `**key**: value`, or a key made of the file's name and the line's number. */
static void read_note(const char *path, const char *stem, const char *category)
{
    char *text = read_file(path, NOTE_MAX), *rest = text, *line;
    for (int number = 1; text && (line = strsep(&rest, "\n")); number++) {
        line = trimmed(line);
        if (!*line || *line == '#')
            continue;
        if (strncmp(line, "- ", 2) == 0)
            line += 2;
        char *end = strncmp(line, "**", 2) == 0 ? strstr(line + 2, "**:") : NULL;
        if (end && end > line + 2) {
            *end = '\0';
            char *value = trimmed(end + 3);
            if (*value)
                add(trimmed(line + 2), value, category);
        } else if (*trimmed(line)) {
            char *key = format("openclaw_%s_%d", stem, number);
            add(key, trimmed(line), category);
            free(key);
        }
    }
    free(text);
}

static void read_notes(const char *source)
{
    char *path = format("%s/MEMORY.md", source), *directory = format("%s/memory", source);
    read_note(path, "openclaw_core", "core");
    free(path);
    DIR *listed = opendir(directory);
    struct dirent *found;
    while (listed && (found = readdir(listed))) {
        size_t len = strlen(found->d_name);
        if (len < 3 || strcmp(found->d_name + len - 3, ".md") != 0)
            continue;
        char *stem = strndup(found->d_name, len - 3);
        path = format("%s/%s", directory, found->d_name);
        read_note(path, stem, "daily");
        free(path);
        free(stem);
    }
    if (listed)
        closedir(listed);
    free(directory);
}

/* The first of these names that is a column of the table; otherwise what comes last, which is no column. */
static const char *column(sqlite3 *db, const char *const *names)
{
    for (; names[1]; names++)
        if (sqlite3_table_column_metadata(db, NULL, "memories", *names, NULL, NULL, NULL, NULL, NULL) == SQLITE_OK)
            return *names;
    return *names;
}

static void read_database(const char *source, const char *name)
{
    static const char *keys[] = {"key", "id", "name", "CAST(rowid AS TEXT)", NULL};
    static const char *contents[] = {"content", "value", "text", "memory", "", NULL};
    static const char *categories[] = {"category", "kind", "type", "'core'", NULL};
    char *path = format("%s/%s", source, name), *query = NULL;
    sqlite3 *db = NULL;
    sqlite3_stmt *rows = NULL;
    if (access(path, F_OK) == 0) {
        bool good = sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) == SQLITE_OK && *column(db, contents);
        if (good) {
            query = format("SELECT %s, %s, %s FROM memories", column(db, keys), column(db, contents),
                           column(db, categories));
            good = sqlite3_prepare_v2(db, query, -1, &rows, NULL) == SQLITE_OK;
        }
        if (!good)
            say("warning(migration): brain.db read failed at %s", path);
        while (good && sqlite3_step(rows) == SQLITE_ROW) {
            const char *key = (const char *)sqlite3_column_text(rows, 0);
            const char *content = (const char *)sqlite3_column_text(rows, 1);
            const char *category = (const char *)sqlite3_column_text(rows, 2);
            if (content && *content && !json_object_get(seen, key ? key : ""))
                add(key ? key : "", content, category ? category : "");
        }
    }
    sqlite3_finalize(rows);
    sqlite3_close(db);
    free(query);
    free(path);
}

static void back_up(void)
{
    char *text = access("memory.db", F_OK) == 0 ? format("cp memory.db memory.db.backup-%ld", (long)time(NULL)) : NULL;
    if (!text || system(text) != 0)
        say("warning(migration): backup before migration failed");
    free(text);
}

/* Whatever is known under a key with another content stays; the new one gets a name of its own. */
static void import(long *imported, long *skipped)
{
    sqlite3 *db = memory_open();
    if (!db)
        die("Migration failed: TargetMemoryOpenFailed");
    size_t i;
    json_t *entry;
    json_array_foreach (entries, i, entry) {
        const char *content = text_at(entry, "content", "");
        char *key = strdup(text_at(entry, "key", "")), *known = memory_get(db, key);
        if (known && strcmp(known, content) == 0) {
            ++*skipped;
        } else {
            if (known) {
                char hex[65], *renamed;
                sha256_hex(content, hex);
                renamed = format("%s_migrated_%.8s", key, hex);
                free(key);
                key = renamed;
            }
            if (memory_store(db, key, content, text_at(entry, "category", "core")))
                ++*imported;
            else
                say("error(migration): failed to store migration entry '%s'", key);
        }
        free(known);
        free(key);
    }
    sqlite3_close(db);
}

/* camelCase -> snake_case in all keys */
static json_t *snake(json_t *value)
{
    const char *key;
    json_t *part, *made;
    size_t i;
    if (json_is_array(value)) {
        made = json_array();
        json_array_foreach (value, i, part)
            json_array_append_new(made, snake(part));
        return made;
    }
    if (!json_is_object(value))
        return json_incref(value);
    made = json_object();
    json_object_foreach (value, key, part) {
        struct buf name = {0};
        for (const char *c = key; *c; c++)
            buf_printf(&name, "%s%c", isupper((unsigned char)*c) && c > key ? "_" : "", tolower((unsigned char)*c));
        json_object_set_new(made, name.data ? name.data : "", snake(part));
        free(name.data);
    }
    return made;
}

/* A configuration beside the workspace, or in it, takes the place of the agent's own. */
static void take_configuration(const char *source, bool dry)
{
    char *parent = strndup(source, strrchr(source, '/') ? (size_t)(strrchr(source, '/') - source) : 0);
    char *paths[] = {format("%s/config.json", parent), format("%s/config.json", source)};
    for (int i = 0; i < 2; i++) {
        char *text = read_file(paths[i], NOTE_MAX);
        json_t *given = text ? json_loads(text, 0, NULL) : NULL;
        if (text && !given)
            die("Migration failed: SyntaxError");
        free(text);
        if (!given)
            continue;
        json_t *made = snake(given);
        FILE *file = dry ? NULL : fopen(config_path, "w");
        if (!dry && (!file || json_dumpf(made, file, JSON_COMPACT) != 0))
            die("Migration failed: %s", errno == EROFS ? "ReadOnlyFileSystem" : "AccessDenied");
        if (file)
            fclose(file);
        say("%s: ~/.openclaw/config.json -> %s", dry ? "[DRY RUN] Config migration preview" : "Config migrated", config_path);
        json_decref(given);
        json_decref(made);
        break;
    }
    free(paths[0]);
    free(paths[1]);
    free(parent);
}

static int usage(void)
{
    fputs("Usage: nullclaw migrate <source> [options]\n\nSources: openclaw\nOptions: --dry-run, --source <path>\n", stderr);
    return 1;
}

int migrate(int count, char **arguments)
{
    if (count < 1)
        return usage();
    if (strcmp(arguments[0], "openclaw") != 0)
        die("Unknown migration source: %s", arguments[0]);
    bool dry = false;
    const char *home = getenv("HOME");
    char *source = format("%s/.openclaw/workspace", home ? home : "");
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--dry-run") == 0)
            dry = true;
        else if (strcmp(arguments[i], "--source") == 0 && i + 1 < count)
            source = arguments[++i];
    }
    config_load();
    if (!config)
        die("No config found -- run `nullclaw onboard` first");
    struct stat found;
    if (stat(source, &found) != 0 || !S_ISDIR(found.st_mode))
        die("Migration failed: SourceNotFound");
    if (strcmp(source, workspace) == 0)
        die("Migration failed: SelfMigration");
    if (strcmp(text_at(config, "memory.backend", "markdown"), "sqlite") != 0)
        die("Migration failed: TargetMemoryOpenFailed (the stand-in keeps memories in SQLite only)");
    entries = json_array();
    seen = json_object();
    read_notes(source);
    read_database(source, "memory/brain.db");
    read_database(source, "brain.db");
    long imported = 0, skipped = 0;
    if (!dry && json_array_size(entries)) {
        back_up();
        import(&imported, &skipped);
    }
    take_configuration(source, dry);
    say("%sMigration complete: %ld imported, %ld skipped", dry ? "[DRY RUN] " : "", imported, skipped);
    return 0;
}
