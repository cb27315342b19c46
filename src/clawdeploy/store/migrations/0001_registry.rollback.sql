DROP TABLE certificate_name;
DROP TABLE bot;
